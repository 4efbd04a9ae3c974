"""A convolution, its ReLU and its pooling as one layer that makes fewer passes over large arrays.

Weights, function and gradient are those of the three stock layers; only the computation of the gradient differs. It is
for training alone: a logged model has stock layers, so that it loads anywhere in safe mode.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

Gradients = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
STRIDES = [1, 1, 1, 1]
WINDOW = [1, 2, 2, 1]


class TrainingConvPool2D(keras.layers.Conv2D):
    """A 3 x 3 convolution with ReLU and 2 x 2 max-pooling; kernel and bias are those of a stock convolution."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the maxima of shape (n, (height - 2) // 2, (width - 2) // 2, filters)."""
        return _conv_relu_pool(inputs, tf.cast(self.kernel, inputs.dtype), tf.cast(self.bias, inputs.dtype))

    def compute_output_shape(self, input_shape: tuple[int | None, int, int, int]) -> tuple[int | None, int, int, int]:
        """Return the shape of what `call` returns."""
        images, height, width, _ = input_shape
        return images, (height - 2) // 2, (width - 2) // 2, self.filters


@tf.custom_gradient
def _conv_relu_pool(
    inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], Gradients]]:
    # TensorFlow fuses these three into one pass.
    activations = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(inputs, kernel, STRIDES, "VALID"), bias))
    maxima = tf.nn.max_pool2d(activations, WINDOW, WINDOW, "VALID")

    def gradients(upstream: tf.Tensor) -> Gradients:
        # The ReLU's gradient and the bias's sum before the pooling's: a quarter of the values. A zero of the ReLU is a
        # maximum only where its whole window is zero, and no gradient goes there.
        upstream = tf.raw_ops.ReluGrad(gradients=upstream, features=maxima)
        # BiasAddGrad adds up in bfloat16, where a long sum stops growing; this sum does not.
        to_bias = tf.reduce_sum(upstream, [0, 1, 2])
        to_activations = tf.raw_ops.MaxPoolGrad(
            orig_input=activations, orig_output=maxima, grad=upstream, ksize=WINDOW, strides=WINDOW, padding="VALID"
        )
        # Without the bias's gradient in the same kernel: in float32 that one takes half as long again.
        to_kernel = tf.raw_ops.Conv2DBackpropFilter(
            input=inputs, filter_sizes=kernel.shape, out_backprop=to_activations, strides=STRIDES, padding="VALID"
        )
        to_inputs = tf.nn.conv2d_transpose(to_activations, kernel, tf.shape(inputs), STRIDES, "VALID")
        return to_inputs, to_kernel, to_bias

    return maxima, gradients
