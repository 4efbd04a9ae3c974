"""The two layers of the network that TensorFlow computes slowly on a processor, computed faster.

Both are the stock layers but for how they are computed: the same weights, the same function and the same gradient.
They serve training alone. A logged model is made of stock layers, so that it loads anywhere in safe mode.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class TrainingMaxPooling2D(keras.layers.MaxPooling2D):
    """Pool 2 x 2; its gradient is one fused pass where TensorFlow's kernel takes a third of the whole step."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the maxima of shape (n, height // 2, width // 2, channels)."""
        return _max_pool(inputs)


class TrainingFirstConv2D(keras.layers.Conv2D):
    """Convolve images of one channel as a product of patches and kernels; the images get no gradient.

    oneDNN's kernels are made for many channels and reach a twentieth of the machine's peak with one.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the activations of shape (n, height - 2, width - 2, filters)."""
        height, width = inputs.shape[1] - 2, inputs.shape[2] - 2
        shifted = [inputs[:, y : y + height, x : x + width, :] for y in range(3) for x in range(3)]
        patches = tf.reshape(tf.concat(shifted, axis=-1), [-1, 9])
        kernel = tf.reshape(tf.cast(self.kernel, patches.dtype), [9, self.filters])
        outputs = tf.nn.bias_add(tf.matmul(patches, kernel), tf.cast(self.bias, patches.dtype))
        return self.activation(tf.reshape(outputs, [-1, height, width, self.filters]))


@tf.custom_gradient
def _max_pool(inputs: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Any]]:
    maxima = tf.nn.max_pool2d(inputs, 2, 2, "VALID")
    return maxima, lambda upstream: _max_pool_gradient(inputs, maxima, upstream)


@tf.function(jit_compile=True)
def _max_pool_gradient(inputs: tf.Tensor, maxima: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Send the gradient to the first maximum of each window in reading order, as TensorFlow's own kernel does."""
    rows, columns, channels = maxima.shape[1:]
    height, width = inputs.shape[1:3]
    windows = tf.reshape(inputs[:, : 2 * rows, : 2 * columns], [-1, rows, 2, columns, 2, channels])
    is_max = windows == maxima[:, :, None, :, None, :]
    first = is_max[:, :, 0, :, 0]
    second = is_max[:, :, 0, :, 1] & ~first
    third = is_max[:, :, 1, :, 0] & ~(first | second)
    fourth = ~(first | second | third)
    zero = tf.zeros_like(upstream)
    upper, lower = (
        tf.stack([tf.where(left, upstream, zero), tf.where(right, upstream, zero)], axis=3)
        for left, right in ((first, second), (third, fourth))
    )
    covered = tf.reshape(tf.stack([upper, lower], axis=2), [-1, 2 * rows, 2 * columns, channels])
    # An odd last row or column lies in no window.
    return tf.pad(covered, [[0, 0], [0, height - 2 * rows], [0, width - 2 * columns], [0, 0]])
