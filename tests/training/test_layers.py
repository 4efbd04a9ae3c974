from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from fashion_study.data.dataset import ImageShape
from fashion_study.errors import BadInputError
from fashion_study.training.layers import TrainingConvPool2D
from fashion_study.training.model import build_model, to_float32
from fashion_study.trial import Hyperparameters

IMAGE_SHAPE = (28, 28, 1)
SMALL = Hyperparameters(filters_1=4, filters_2=6, filters_3=8, dense_units=12, input_scale="unit")

RANDOM = np.random.default_rng(0)
MAPS = {
    "no two values alike": RANDOM.normal(size=(3, 12, 12, 4)),
    "odd sides, whose last row and column lie in no window": RANDOM.normal(size=(2, 11, 11, 3)),
    "a side odd and a side even": RANDOM.normal(size=(2, 11, 8, 3)),
    "many ties": RANDOM.integers(0, 3, size=(3, 12, 12, 4)),
    "nothing but ties": np.full((2, 11, 11, 3), 7),
}


def convolved_and_pooled(layers: Sequence[keras.layers.Layer], inputs: tf.Tensor) -> list[npt.NDArray[np.float64]]:
    """Return the layers' outputs, then the gradients of inputs, kernel and bias, from 1, 2, 3 ... above."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = inputs
        for layer in layers:
            outputs = layer(outputs)
    upstream = tf.cast(tf.reshape(tf.range(1, tf.size(outputs) + 1), outputs.shape), outputs.dtype)
    gradients = tape.gradient(outputs, [inputs, *layers[0].trainable_weights], output_gradients=upstream)
    return [tf.cast(result, "float64").numpy() for result in (outputs, *gradients)]


def errors(
    layers: Sequence[keras.layers.Layer], inputs: tf.Tensor, expected: list[npt.NDArray[np.float64]]
) -> list[float]:
    """Return the largest error of each result, as a share of the largest expected value."""
    found = convolved_and_pooled(layers, inputs)
    return [float(np.abs(mine - true).max() / np.abs(true).max()) for mine, true in zip(found, expected, strict=True)]


def stock_and_training_layers(
    channels: int, filters: int, kernel: npt.NDArray[Any], bias: npt.NDArray[Any], dtype: str
) -> tuple[list[keras.layers.Layer], list[keras.layers.Layer]]:
    stock = keras.layers.Conv2D(filters, 3, activation="relu", dtype=dtype)
    ours = TrainingConvPool2D(filters, 3, dtype=dtype)
    for layer in (stock, ours):
        layer.build((None, 12, 12, channels))
        layer.set_weights([kernel, bias])
    return [stock, keras.layers.MaxPooling2D(2, dtype=dtype)], [ours]


def weight_gradients(model: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> list[npt.NDArray[np.float32]]:
    with tf.GradientTape() as tape:
        losses = keras.losses.sparse_categorical_crossentropy(labels, model(images, training=True))
        loss = tf.reduce_mean(losses)
    return [gradient.numpy() for gradient in tape.gradient(loss, model.trainable_weights)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", MAPS)
def test_the_layer_is_keras_own_three_with_their_gradients(kind: str, dtype: str) -> None:
    inputs = tf.cast(tf.constant(MAPS[kind]), dtype)
    channels = inputs.shape[-1]
    # Whole numbers: nothing is rounded where the inputs are whole as well, so that ties stay ties.
    kernel, bias = RANDOM.integers(-2, 3, size=(3, 3, channels, 5)), RANDOM.integers(-2, 3, size=5)
    stock, ours = stock_and_training_layers(channels, 5, kernel, bias, dtype)

    found, expected = (convolved_and_pooled(layers, inputs) for layers in (ours, stock))

    assert [result.shape for result in found[1:]] == [inputs.shape, kernel.shape, bias.shape]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_in_bfloat16_the_layer_is_as_exact_as_keras_own() -> None:
    inputs = tf.constant(RANDOM.normal(size=(64, 12, 12, 4)), tf.float32)
    kernel, bias = RANDOM.normal(size=(3, 3, 4, 8)), RANDOM.normal(size=8)
    exact, _ = stock_and_training_layers(4, 8, kernel, bias, "float32")
    stock, ours = stock_and_training_layers(4, 8, kernel, bias, "mixed_bfloat16")

    expected = convolved_and_pooled(exact, inputs)
    for mine, theirs in zip(errors(ours, inputs, expected), errors(stock, inputs, expected), strict=True):
        assert mine <= 1.1 * theirs


def test_the_layer_takes_any_batch_inside_a_compiled_step() -> None:
    _, ours = stock_and_training_layers(2, 5, np.ones((3, 3, 2, 5)), np.ones(5), "float32")
    step = tf.function(
        lambda images: gradient_of_sum(ours[0], images), input_signature=[tf.TensorSpec((None, 6, 6, 2))]
    )
    for images in (1, 5):
        assert step(tf.ones((images, 6, 6, 2))).shape == (images, 6, 6, 2)


def gradient_of_sum(layer: keras.layers.Layer, images: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        tape.watch(images)
        total = tf.reduce_sum(layer(images))
    return tape.gradient(total, images)


# Every remainder of a side, in both directions: an image's last 0 to 3 rows and columns reach nothing.
SHAPES = [(28, 28, 1), (32, 40, 3), (18, 19, 1), (35, 21, 4), (22, 36, 3)]


@pytest.mark.parametrize("image_shape", SHAPES)
def test_what_training_crops_reaches_nothing(image_shape: ImageShape) -> None:
    keras.utils.set_random_seed(3)
    training = build_model(SMALL, image_shape, 10)
    ((_, rows), (_, columns)) = training.get_layer("crop").cropping
    logged = to_float32(training, SMALL)
    pixels = RANDOM.integers(0, 256, size=(4, *image_shape))
    height, width, _ = image_shape
    cropped, seen = pixels.copy(), pixels.copy()
    cropped[:, height - rows :], cropped[:, :, width - columns :] = 255, 255
    np.testing.assert_array_equal(logged(pixels), logged(cropped))
    for edge in (np.s_[:, height - rows - 1], np.s_[:, :, width - columns - 1]):
        seen[edge] = 255 - seen[edge]
        assert not np.array_equal(logged(pixels), logged(seen)), "more could be cropped"


@pytest.mark.parametrize(
    ("image_shape", "changes"),
    [
        *((image_shape, {}) for image_shape in SHAPES),
        ((28, 28, 1), {"poolings": 3}),
        ((29, 31, 1), {"convolutions_1": 2}),
        ((29, 31, 1), {"convolutions_2": 2, "convolutions_3": 2}),
        ((29, 31, 1), {"normalization": "batch"}),
    ],
)
def test_the_network_that_trains_is_the_logged_one(image_shape: ImageShape, changes: dict[str, object]) -> None:
    keras.utils.set_random_seed(3)
    params = SMALL.model_copy(update=changes)
    training = build_model(params, image_shape, 10)
    logged = to_float32(training, params)
    pixels = tf.constant(RANDOM.integers(0, 256, size=(16, *image_shape)), tf.uint8)
    labels = tf.constant(RANDOM.integers(0, 10, size=16))

    np.testing.assert_allclose(training(pixels), logged(pixels), atol=1e-5)
    gradients = (weight_gradients(model, pixels, labels) for model in (training, logged))
    for mine, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("image_shape", [(17, 28, 1), (28, 8, 3)])
def test_images_too_small_for_the_network_are_refused(image_shape: ImageShape) -> None:
    with pytest.raises(BadInputError, match="at least 18 x 18"):
        build_model(SMALL, image_shape, 10)


def test_a_logged_model_has_stock_layers_and_loads_safely(tmp_path: Path) -> None:
    training = build_model(SMALL, IMAGE_SHAPE, 10)
    if not tf.config.list_physical_devices("GPU"):
        assert TrainingConvPool2D in {type(layer) for layer in training.layers}
    float32_model = to_float32(training, SMALL)
    float32_model.save(tmp_path / "model.keras")

    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)

    for model in (float32_model, loaded):
        for layer in model.layers:
            assert type(layer) is getattr(keras.layers, type(layer).__name__)
