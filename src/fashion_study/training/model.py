"""The shared builder: one convolutional network, varied by the hyperparameters."""

import math
from collections.abc import Callable
from functools import partial, reduce
from itertools import count

import keras
import tensorflow as tf

from fashion_study.data.dataset import ImageShape
from fashion_study.errors import BadInputError
from fashion_study.training.layers import TrainingConvPool2D
from fashion_study.training.schedule import Schedule
from fashion_study.trial import Hyperparameters, Precision, Views

# As many as a model file may hold (`model_file.py`): 120 MB of weights.
STORABLE_PARAMETERS = 30_000_000

# Several steps per call of the compiled function spare Keras's work between them: 3 to 5 % of an epoch on
# one core, against 0.2 s more of tracing. A diverged loss is still seen after at most this many steps.
STEPS_PER_EXECUTION = 8


class ModelTooLargeError(BadInputError):
    """A network of more `parameters` than are allowed."""

    def __init__(self, parameters: int, most: float) -> None:
        super().__init__(
            f"The network has {parameters:,} parameters. Expected at most {most:,}: give it fewer filters or dense "
            "units, a third pooling, or a head that takes the maximum or the average."
        )
        self.parameters = parameters


def build_model(
    params: Hyperparameters,
    image_shape: ImageShape,
    classes: int,
    precision: Precision = Precision.FLOAT32,
    *,
    images: int | None = None,
    max_parameters: int | None = None,
) -> keras.Model:
    """Build and compile the model for raw pixels: shape (n, *image_shape), 0 to 255, integers or floats.

    It returns probabilities of shape (n, classes), always float32. With `Precision.BFLOAT16` the weights stay float32
    and the arithmetic in between is bfloat16. A schedule over the whole training needs to know how many `images` are
    to train it.

    Raises:
        BadInputError: the images are too small for the network.
        ModelTooLargeError: it has more than `max_parameters`, or more than a model file may hold.
    """
    # A GPU's own kernels are faster than ours.
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    model = build_network(params, image_shape, classes, precision, fused=not on_gpu)
    if (parameters := model.count_params()) > (most := min(max_parameters or math.inf, STORABLE_PARAMETERS)):
        raise ModelTooLargeError(parameters, most)
    model.compile(
        optimizer=_optimizer(params, images),
        loss=_loss(params, classes),
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


def with_views(network: keras.Model, views: Views) -> keras.Model:
    """Return a model of the network's own layers that averages its probabilities over views of each picture.

    They are the picture as it is and, with `mirror`, mirrored left to right.
    """
    if views == "none":
        return network
    pixels = keras.Input(network.input_shape[1:], name="pixels")
    seen = [pixels, keras.ops.flip(pixels, axis=2)]
    probabilities = [reduce(lambda values, layer: layer(values), network.layers, each) for each in seen]
    return keras.Model(pixels, keras.layers.Average(name="views")(probabilities), name=network.name)


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
    if not _side_after(min(height, width), params):
        smallest = next(side for side in count(1) if _side_after(side, params))
        raise BadInputError(
            f"Images of {height} x {width} pixels are too small for the network. Expected at least {smallest} x "
            f"{smallest}: enlarge them first."
        )
    return keras.Sequential(_layers(params, image_shape, classes, precision, fused), name="fashion_cnn")


def _layers(
    params: Hyperparameters, image_shape: ImageShape, classes: int, precision: Precision, fused: bool
) -> list[keras.layers.Layer]:
    layers = keras.layers
    # A policy per layer: the global one would outlive this model.
    policy = keras.DTypePolicy("float32" if precision is Precision.FLOAT32 else "mixed_bfloat16")
    scale = layers.Identity if params.input_scale == "raw" else partial(layers.Rescaling, 1 / 255)
    return [
        keras.Input(image_shape, name="pixels"),
        *([_crop(image_shape)] if fused and _has_dead_margin(params) else []),
        scale(dtype="float32", name="input_scale"),
        *(layer for stage in (1, 2, 3) for layer in _stage(stage, params, policy, fused)),
        *_head(params, policy),
        layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities"),
    ]


def _stage(stage: int, params: Hyperparameters, policy: keras.DTypePolicy, fused: bool) -> list[keras.layers.Layer]:
    """Return the layers of a stage: a convolution, perhaps pooled, and perhaps a second one that keeps the size."""
    filters, is_pooled = getattr(params, f"filters_{stage}"), stage <= params.poolings
    if fused and is_pooled and (params.padding, params.normalization, params.activation) == ("valid", "none", "relu"):
        made = [TrainingConvPool2D(filters, 3, dtype=policy, name=f"conv_{stage}")]
    else:
        made = _convolution(f"{stage}", filters, params.padding, policy, params, is_pooled=is_pooled)
    if getattr(params, f"convolutions_{stage}") == 2:
        made += _convolution(f"{stage}_2", filters, "same", policy, params, is_pooled=False)
    return made


def _convolution(
    name: str, filters: int, padding: str, policy: keras.DTypePolicy, params: Hyperparameters, *, is_pooled: bool
) -> list[keras.layers.Layer]:
    layers = keras.layers
    is_normalized = params.normalization == "batch"
    settings = {"padding": padding, "use_bias": not is_normalized, "dtype": policy, "name": f"conv_{name}"}
    if not (is_pooled or is_normalized):
        return [layers.Conv2D(filters, 3, activation=params.activation, **settings)]
    momentum = params.normalization_momentum
    # ReLU after pooling is the same function and gradient as before it, on a quarter of the values.
    activation = layers.ReLU if params.activation == "relu" else partial(layers.Activation, params.activation)
    return [
        layers.Conv2D(filters, 3, **settings),
        *([layers.MaxPooling2D(2, dtype=policy, name=f"pool_{name}")] if is_pooled else []),
        *([layers.BatchNormalization(momentum=momentum, dtype=policy, name=f"norm_{name}")] if is_normalized else []),
        activation(dtype=policy, name=f"{params.activation}_{name}"),
    ]


def _head(params: Hyperparameters, policy: keras.DTypePolicy) -> list[keras.layers.Layer]:
    layers = keras.layers
    heads = {"flatten": layers.Flatten, "max": layers.GlobalMaxPooling2D, "average": layers.GlobalAveragePooling2D}
    made = [heads[params.head](dtype=policy, name=params.head)]
    if params.dense_units:
        made.append(layers.Dense(params.dense_units, activation=params.activation, dtype=policy, name="dense"))
    if params.dropout:
        made.append(layers.Dropout(params.dropout, dtype=policy, name="dropout"))
    return made


def _side_after(side: int, params: Hyperparameters) -> int:
    """Return what is left of a side of so many pixels after the last stage, 0 for nothing."""
    for stage in (1, 2, 3):
        side = side - 2 if params.padding == "valid" else side
        side = max(0, side // 2 if stage <= params.poolings else side)
    return side


def _has_dead_margin(params: Hyperparameters) -> bool:
    """Return whether the first two stages are those of the blog's network, but for their widths and activation.

    A normalization's statistics would include the margin, and a convolution that pads would read it.
    """
    settings = params.convolutions_1, params.convolutions_2, params.padding, params.normalization
    return settings == (1, 1, "valid", "none")


def _crop(image_shape: ImageShape) -> keras.layers.Layer:
    margin = tuple((0, _dead_margin(side)) for side in image_shape[:2])
    return keras.layers.Cropping2D(margin, dtype="float32", name="crop")


def _dead_margin(side: int) -> int:
    """Return how many rows (or columns) at the end of an image reach no output: 0 to 3 of them.

    A pooling drops an odd last row; the second one's last row is followed back to the image.
    """
    pooled = ((side - 2) // 2 - 2) // 2
    return side - (2 * (2 * pooled + 2) + 2)


def _loss(params: Hyperparameters, classes: int) -> str | Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    if not params.label_smoothing:
        return "sparse_categorical_crossentropy"

    def smoothed(labels: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
        targets = keras.ops.one_hot(keras.ops.reshape(labels, [-1]), classes)
        return keras.losses.categorical_crossentropy(targets, probabilities, label_smoothing=params.label_smoothing)

    return smoothed


def _optimizer(params: Hyperparameters, images: int | None) -> keras.optimizers.Optimizer:
    kinds = {
        "rmsprop": keras.optimizers.RMSprop,
        "adam": keras.optimizers.Adam,
        "sgd": partial(keras.optimizers.SGD, momentum=params.momentum, nesterov=params.momentum > 0),
    }
    optimizer = kinds[params.optimizer](
        learning_rate=Schedule(params, images),
        weight_decay=params.weight_decay or None,
        use_ema=params.averaging > 0,
        ema_momentum=params.averaging,
    )
    if params.weight_decay:
        # Without the biases, and without what scales and shifts a normalization.
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
