"""The shared builder: one convolutional network, varied by the hyperparameters."""

from functools import partial

import keras
import tensorflow as tf

from fashion_study.data.dataset import ImageShape
from fashion_study.errors import BadInputError
from fashion_study.training.layers import TrainingConvPool2D
from fashion_study.trial import Hyperparameters, Precision

# The smallest side of which the third convolution still has a window.
MIN_SIDE = 18

# Several steps per call of the compiled function spare Keras's work between them: 3 to 5 % of an epoch on
# one core, against 0.2 s more of tracing. A diverged loss is still seen after at most this many steps.
STEPS_PER_EXECUTION = 8


def build_model(
    params: Hyperparameters, image_shape: ImageShape, classes: int, precision: Precision = Precision.FLOAT32
) -> keras.Model:
    """Build and compile the model for raw pixels: shape (n, *image_shape), 0 to 255, integers or floats.

    It returns probabilities of shape (n, classes), always float32. With `Precision.BFLOAT16` the weights stay float32
    and the arithmetic in between is bfloat16.

    Raises:
        BadInputError: the images are too small for the network.
    """
    # A GPU's own kernels are faster than ours.
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    model = build_network(params, image_shape, classes, precision, fused=not on_gpu)
    model.compile(
        optimizer=_optimizer(params),
        loss="sparse_categorical_crossentropy",
        # By its name Keras would make it where the step is traced; see below.
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        steps_per_execution=STEPS_PER_EXECUTION,
        jit_compile=False,  # XLA is 3 to 9 times slower on a CPU.
    )
    # Every variable that the trace of a step makes costs two branches to trace, which TensorFlow then keeps for ever:
    # 4 MiB and 0.2 s of each trial.
    model.optimizer.build(model.trainable_variables)
    return model


def to_float32(model: keras.Model, params: Hyperparameters) -> keras.Model:
    """Copy the weights into a float32 model that is not compiled, so it has no optimizer state."""
    float32_model = build_network(params, model.input_shape[1:], model.output_shape[-1])
    float32_model.set_weights(model.get_weights())
    return float32_model


def build_network(
    params: Hyperparameters,
    image_shape: ImageShape,
    classes: int,
    precision: Precision = Precision.FLOAT32,
    *,
    fused: bool = False,
) -> keras.Model:
    """Build the network without an optimizer, of stock layers or of those that are faster to train."""
    height, width, _ = image_shape
    if min(height, width) < MIN_SIDE:
        raise BadInputError(
            f"Images of {height} x {width} pixels are too small for the network. Expected at least {MIN_SIDE} x "
            f"{MIN_SIDE}: enlarge them first."
        )
    return keras.Sequential(_layers(params, image_shape, classes, precision, fused), name="fashion_cnn")


def _layers(
    params: Hyperparameters, image_shape: ImageShape, classes: int, precision: Precision, fused: bool
) -> list[keras.layers.Layer]:
    layers = keras.layers
    # A policy per layer: the global one would outlive this model.
    policy = keras.DTypePolicy("float32" if precision is Precision.FLOAT32 else "mixed_bfloat16")
    margin = tuple((0, _dead_margin(side)) for side in image_shape[:2])
    scale = layers.Identity if params.input_scale == "raw" else partial(layers.Rescaling, 1 / 255)
    return [
        keras.Input(image_shape, name="pixels"),
        *([layers.Cropping2D(margin, dtype="float32", name="crop")] if fused else []),
        scale(dtype="float32", name="input_scale"),
        *_conv_pool(1, params.filters_1, policy, fused),
        *_conv_pool(2, params.filters_2, policy, fused),
        layers.Conv2D(params.filters_3, 3, activation="relu", dtype=policy, name="conv_3"),
        layers.Flatten(dtype=policy, name="flatten"),
        layers.Dense(params.dense_units, activation="relu", dtype=policy, name="dense"),
        layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities"),
    ]


def _dead_margin(side: int) -> int:
    """Return how many rows (or columns) at the end of an image reach no output: 0 to 3 of them.

    A pooling drops an odd last row; the second one's last row is followed back to the image.
    """
    pooled = ((side - 2) // 2 - 2) // 2
    return side - (2 * (2 * pooled + 2) + 2)


def _conv_pool(number: int, filters: int, policy: keras.DTypePolicy, fused: bool) -> list[keras.layers.Layer]:
    if fused:
        return [TrainingConvPool2D(filters, 3, dtype=policy, name=f"conv_{number}")]
    # ReLU after pooling: the same function and gradient as before it, on a quarter of the values.
    return [
        keras.layers.Conv2D(filters, 3, dtype=policy, name=f"conv_{number}"),
        keras.layers.MaxPooling2D(2, dtype=policy, name=f"pool_{number}"),
        keras.layers.ReLU(dtype=policy, name=f"relu_{number}"),
    ]


def _optimizer(params: Hyperparameters) -> keras.optimizers.Optimizer:
    # What Keras 2 called `decay`: the rate is divided by (1 + decay * step), step by step.
    schedule = keras.optimizers.schedules.InverseTimeDecay(params.learning_rate, decay_steps=1, decay_rate=params.decay)
    kinds = {"rmsprop": keras.optimizers.RMSprop, "adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}
    return kinds[params.optimizer](learning_rate=schedule)
