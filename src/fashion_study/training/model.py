"""The shared builder: one convolutional network, varied by the hyperparameters."""

import keras
import tensorflow as tf

from fashion_study.training.layers import TrainingConvPool2D
from fashion_study.trial import Hyperparameters, Precision

IMAGE_SHAPE = (28, 28, 1)
# A pooling drops an odd last row and column. Seen from the second one, an image's last two reach nothing.
DEAD_MARGIN = 2

# Several steps per call of the compiled function spare Keras's work between them: 3 to 5 % of an epoch on
# one core, against 0.2 s more of tracing. A diverged loss is still seen after at most this many steps.
STEPS_PER_EXECUTION = 8

POLICIES = {Precision.FLOAT32: "float32", Precision.BFLOAT16: "mixed_bfloat16"}


def build_model(params: Hyperparameters, precision: Precision = Precision.FLOAT32, classes: int = 10) -> keras.Model:
    """Build and compile the model for raw pixels: shape (n, 28, 28, 1), 0 to 255, integers or floats.

    It answers with probabilities of shape (n, classes), always float32. With `Precision.BFLOAT16` the weights
    stay float32 and the arithmetic in between is bfloat16.
    """
    # A GPU's own kernels are faster than ours.
    model = _network(params, precision, classes, for_training=not tf.config.list_physical_devices("GPU"))
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
    """Copy the weights into a float32 model that is not compiled, so it carries no optimizer state."""
    float32_model = _network(params, Precision.FLOAT32, model.output_shape[-1], for_training=False)
    float32_model.set_weights(model.get_weights())
    return float32_model


def _network(params: Hyperparameters, precision: Precision, classes: int, *, for_training: bool) -> keras.Model:
    layers = keras.layers
    # A policy per layer: the global one would outlive this model.
    policy = keras.DTypePolicy(POLICIES[precision])
    conv_pool = _training_conv_pool if for_training else _stock_conv_pool
    return keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE, name="pixels"),
            *(
                [layers.Cropping2D(((0, DEAD_MARGIN), (0, DEAD_MARGIN)), dtype="float32", name="crop")]
                if for_training
                else []
            ),
            _input_scale(params),
            *conv_pool(1, params.filters_1, policy),
            *conv_pool(2, params.filters_2, policy),
            layers.Conv2D(params.filters_3, 3, activation="relu", dtype=policy, name="conv_3"),
            layers.Flatten(dtype=policy, name="flatten"),
            layers.Dense(params.dense_units, activation="relu", dtype=policy, name="dense"),
            layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities"),
        ],
        name="fashion_cnn",
    )


def _training_conv_pool(number: int, filters: int, policy: keras.DTypePolicy) -> list[keras.layers.Layer]:
    return [TrainingConvPool2D(filters, 3, dtype=policy, name=f"conv_{number}")]


def _stock_conv_pool(number: int, filters: int, policy: keras.DTypePolicy) -> list[keras.layers.Layer]:
    # ReLU after pooling: the same function and gradient as before it, on a quarter of the values.
    return [
        keras.layers.Conv2D(filters, 3, dtype=policy, name=f"conv_{number}"),
        keras.layers.MaxPooling2D(2, dtype=policy, name=f"pool_{number}"),
        keras.layers.ReLU(dtype=policy, name=f"relu_{number}"),
    ]


def _input_scale(params: Hyperparameters) -> keras.layers.Layer:
    if params.input_scale == "unit":
        return keras.layers.Rescaling(1 / 255, dtype="float32", name="input_scale")
    return keras.layers.Identity(dtype="float32", name="input_scale")


def _optimizer(params: Hyperparameters) -> keras.optimizers.Optimizer:
    # What Keras 2 called `decay`: the rate is divided by (1 + decay * step), step by step.
    schedule = keras.optimizers.schedules.InverseTimeDecay(params.learning_rate, decay_steps=1, decay_rate=params.decay)
    kinds = {
        "rmsprop": keras.optimizers.RMSprop,
        "adam": keras.optimizers.Adam,
        "sgd": keras.optimizers.SGD,
    }
    return kinds[params.optimizer](learning_rate=schedule)
