import keras
import numpy as np
import pytest
import tensorflow as tf

from fashion_study.data.dataset import Dataset
from fashion_study.training.model import build_model, to_float32
from fashion_study.trial import Hyperparameters, Precision

BLOG = Hyperparameters()
IMAGE_SHAPE = (28, 28, 1)
SMALL = Hyperparameters(filters_1=4, filters_2=6, filters_3=8, dense_units=12)


@pytest.mark.parametrize("params", [BLOG, BLOG.model_copy(update={"input_scale": "unit"})])
def test_the_baseline_is_the_model_of_the_blog_post(params: Hyperparameters) -> None:
    found = build_model(params, IMAGE_SHAPE, 10).count_params()
    assert found == 93_322, (
        f"The blog's model has 93,322 parameters, this one has {found:,}: every comparison with the post and "
        "every stored study would be about another network. Raise TRAINING_VERSION if that is meant."
    )


def test_the_hyperparameters_set_the_widths_of_the_layers() -> None:
    model = build_model(SMALL, IMAGE_SHAPE, 3)
    widths = [model.get_layer(name).output.shape[-1] for name in ("conv_1", "conv_2", "conv_3", "dense")]
    assert widths == [4, 6, 8, 12]
    assert model.output_shape == (None, 3)


def test_pixels_may_come_as_bytes_or_as_floats(digits: Dataset) -> None:
    model = build_model(SMALL, IMAGE_SHAPE, 10)
    pixels = digits.validation.images[:20]
    np.testing.assert_array_equal(model(pixels), model(pixels.astype(np.float32)))


def test_the_unit_scale_divides_pixels_by_255_inside_the_model(digits: Dataset) -> None:
    raw, unit = (
        build_model(SMALL.model_copy(update={"input_scale": scale}), IMAGE_SHAPE, 10) for scale in ("raw", "unit")
    )
    unit.set_weights(raw.get_weights())
    pixels = digits.validation.images[:20]
    np.testing.assert_allclose(unit(pixels), raw(pixels / 255), atol=1e-6)
    assert not np.allclose(raw(pixels), raw(pixels / 255), atol=1e-3)


def test_the_seed_alone_decides_the_weights_a_model_starts_with() -> None:
    def first_weights(seed: int) -> np.ndarray:
        keras.utils.set_random_seed(seed)
        return np.asarray(build_model(SMALL, IMAGE_SHAPE, 10).get_weights()[0])

    np.testing.assert_array_equal(first_weights(7), first_weights(7))
    assert not np.array_equal(first_weights(7), first_weights(8))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rmsprop", keras.optimizers.RMSprop),
        ("adam", keras.optimizers.Adam),
        ("sgd", keras.optimizers.SGD),
    ],
)
def test_the_optimizer_is_the_one_named(name: str, kind: type) -> None:
    model = build_model(SMALL.model_copy(update={"optimizer": name}), IMAGE_SHAPE, 10)
    assert type(model.optimizer) is kind


def test_the_learning_rate_decays_inversely_with_every_step(digits: Dataset) -> None:
    model = build_model(SMALL.model_copy(update={"learning_rate": 0.01, "decay": 0.5}), IMAGE_SHAPE, 10)
    rates = [float(model.optimizer.learning_rate)]
    for _ in range(3):
        model.train_on_batch(digits.train.images[:8], digits.train.labels[:8])
        rates.append(float(model.optimizer.learning_rate))
    assert rates == pytest.approx([0.01, 0.01 / 1.5, 0.01 / 2, 0.01 / 2.5])


def test_bfloat16_concerns_one_model_and_its_arithmetic_only(digits: Dataset) -> None:
    model = build_model(SMALL, IMAGE_SHAPE, 10, Precision.BFLOAT16)
    assert model.get_layer("conv_1").compute_dtype == "bfloat16"
    assert {str(weight.dtype) for weight in model.get_weights()} == {"float32"}
    assert model(digits.validation.images[:2]).dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"


def test_training_computes_what_the_blog_post_s_layers_compute(digits: Dataset) -> None:
    layers = keras.layers
    blog = keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE),
            layers.Conv2D(SMALL.filters_1, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(SMALL.filters_2, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(SMALL.filters_3, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(SMALL.dense_units, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    ours = build_model(SMALL, IMAGE_SHAPE, 10)
    blog.set_weights(ours.get_weights())
    pixels, labels = digits.train.images[:64].astype(np.float32), digits.train.labels[:64]

    def output_and_gradients(model: keras.Model) -> tuple[np.ndarray, list[np.ndarray]]:
        with tf.GradientTape() as tape:
            output = model(pixels, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, output))
        return output.numpy(), [gradient.numpy() for gradient in tape.gradient(loss, model.trainable_weights)]

    (output, gradients), (expected, stock) = output_and_gradients(ours), output_and_gradients(blog)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    for found, gradient in zip(gradients, stock, strict=True):
        np.testing.assert_allclose(found, gradient, rtol=1e-3, atol=1e-4 * np.abs(gradient).max())


def test_the_float32_model_has_the_weights_and_no_optimizer(digits: Dataset) -> None:
    model = build_model(SMALL, IMAGE_SHAPE, 10, Precision.BFLOAT16)
    model.train_on_batch(digits.train.images[:32], digits.train.labels[:32])
    float32_model = to_float32(model, SMALL)

    for ours, theirs in zip(float32_model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert {layer.compute_dtype for layer in float32_model.layers} == {"float32"}
    assert not float32_model.compiled
