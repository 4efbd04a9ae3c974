from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from fashion_study.training.fit import seed_training
from fashion_study.training.layers import TrainingFirstConv2D, TrainingMaxPooling2D
from fashion_study.training.model import build_model, float32_twin
from fashion_study.trial import Hyperparameters

SMALL = Hyperparameters(filters_1=4, filters_2=6, filters_3=8, dense_units=12, input_scale="unit")

RANDOM = np.random.default_rng(0)
MAPS = {
    "no two values alike": RANDOM.normal(size=(3, 12, 12, 4)),
    "odd sides, whose last row and column lie in no window": RANDOM.normal(size=(2, 11, 11, 3)),
    "a side odd and a side even": RANDOM.normal(size=(2, 11, 8, 3)),
    "many ties": RANDOM.integers(0, 3, size=(3, 12, 12, 4)),
    "nothing but ties": np.full((2, 11, 11, 3), 7),
}


def pooled(layer: keras.layers.Layer, inputs: tf.Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return a pooling's outputs and the gradient that reaches its inputs, from a gradient of 1, 2, 3, ... above."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs)
    upstream = tf.cast(tf.reshape(tf.range(1, tf.size(outputs) + 1), outputs.shape), outputs.dtype)
    gradient = tape.gradient(outputs, inputs, output_gradients=upstream)
    return tf.cast(outputs, "float32").numpy(), tf.cast(gradient, "float32").numpy()


def stock_and_training_convolution() -> tuple[keras.layers.Layer, keras.layers.Layer]:
    stock, ours = (kind(5, 3, activation="relu") for kind in (keras.layers.Conv2D, TrainingFirstConv2D))
    for layer in (stock, ours):
        layer.build((None, 28, 28, 1))
    weights = [RANDOM.normal(size=weight.shape) for weight in stock.get_weights()]
    stock.set_weights(weights)
    ours.set_weights(weights)
    return stock, ours


def weight_gradients(model: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> list[npt.NDArray[np.float32]]:
    with tf.GradientTape() as tape:
        losses = keras.losses.sparse_categorical_crossentropy(labels, model(images, training=True))
        loss = tf.reduce_mean(losses)
    return [gradient.numpy() for gradient in tape.gradient(loss, model.trainable_weights)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MAPS)
def test_the_pooling_is_keras_own_with_keras_own_gradient(kind: str, dtype: str) -> None:
    inputs = tf.cast(tf.constant(MAPS[kind]), dtype)
    expected = pooled(keras.layers.MaxPooling2D(2, dtype=dtype), inputs)
    found = pooled(TrainingMaxPooling2D(2, dtype=dtype), inputs)
    for ours, stock in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, stock)


def test_the_pooling_sends_each_gradient_to_one_place_even_where_all_values_tie() -> None:
    outputs, gradient = pooled(TrainingMaxPooling2D(2), tf.ones((2, 11, 11, 3)))
    assert np.count_nonzero(gradient) == outputs.size
    assert gradient.sum() == sum(range(1, outputs.size + 1))


def test_the_pooling_works_for_any_number_of_images_inside_a_compiled_step() -> None:
    layer = TrainingMaxPooling2D(2)
    step = tf.function(lambda images: pooled_sum(layer, images), input_signature=[tf.TensorSpec((None, 6, 6, 2))])
    for images in (1, 5):
        assert int(tf.math.count_nonzero(step(tf.ones((images, 6, 6, 2))))) == images * 9 * 2


def pooled_sum(layer: keras.layers.Layer, images: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        tape.watch(images)
        total = tf.reduce_sum(layer(images))
    return tape.gradient(total, images)


def test_the_first_convolution_is_keras_own_with_keras_own_gradients() -> None:
    stock, ours = stock_and_training_convolution()
    images = tf.constant(RANDOM.integers(0, 256, size=(6, 28, 28, 1)), tf.float32)

    def outputs_and_gradients(layer: keras.layers.Layer) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            outputs = layer(images)
            loss = tf.reduce_mean(outputs * outputs)
        return [outputs, *tape.gradient(loss, layer.trainable_weights)]

    expected = outputs_and_gradients(stock)
    assert [result.shape for result in expected] == [(6, 26, 26, 5), (3, 3, 1, 5), (5,)]
    for mine, theirs in zip(outputs_and_gradients(ours), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-3 * float(tf.reduce_max(tf.abs(theirs))))


def test_the_network_that_trains_is_the_network_that_is_logged() -> None:
    seed_training(3)
    training = build_model(SMALL)
    logged = float32_twin(training, SMALL)
    pixels = tf.constant(RANDOM.integers(0, 256, size=(16, 28, 28, 1)), tf.uint8)
    labels = tf.constant(RANDOM.integers(0, 10, size=16))

    np.testing.assert_allclose(training(pixels), logged(pixels), atol=1e-5)
    gradients = (weight_gradients(model, pixels, labels) for model in (training, logged))
    for mine, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)


def test_what_is_logged_holds_stock_layers_and_loads_in_safe_mode(tmp_path: Path) -> None:
    training = build_model(SMALL)
    if not tf.config.list_physical_devices("GPU"):
        assert {TrainingFirstConv2D, TrainingMaxPooling2D} <= {type(layer) for layer in training.layers}
    twin = float32_twin(training, SMALL)
    twin.save(tmp_path / "model.keras")

    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)

    for model in (twin, loaded):
        for layer in model.layers:
            assert type(layer) is getattr(keras.layers, type(layer).__name__)
