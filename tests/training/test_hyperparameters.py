"""Every hyperparameter does what its name says, and the ones that the blog's network does not have are off in it."""

import gc
import json
import math
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from fashion_study.data.dataset import Dataset
from fashion_study.errors import BadInputError, DamagedModelError
from fashion_study.training.augmentation import Augmentation
from fashion_study.training.checkpoint import Checkpoint, load, save
from fashion_study.training.fit import fit
from fashion_study.training.model import build_model, to_float32, with_views
from fashion_study.training.model_file import load_model_file
from fashion_study.trial import Epoch, Hyperparameters, Precision, TrialState

IMAGE_SHAPE = (28, 28, 1)
SMALL = Hyperparameters(filters_1=4, filters_2=6, filters_3=8, dense_units=12, batch_size=64, epochs=4)
WIDE = SMALL.model_copy(
    update={
        "convolutions_1": 2,
        "convolutions_2": 2,
        "convolutions_3": 2,
        "padding": "same",
        "poolings": 3,
        "normalization": "batch",
        "normalization_momentum": 0.8,
        "activation": "gelu",
        "head": "max",
        "dense_units": 0,
        "dropout": 0.2,
        "learning_rate": 0.01,
        "schedule": "one_cycle",
        "warmup": 0.25,
        "optimizer": "adam",
        "weight_decay": 0.01,
        "label_smoothing": 0.1,
        "averaging": 0.9,
        "flip": "alternating",
        "shift": 2,
        "erasing": 0.5,
        "input_scale": "unit",
    }
)


def small(**changes: Any) -> Hyperparameters:
    return Hyperparameters.model_validate(SMALL.model_dump() | changes)


def layers_of(params: Hyperparameters) -> list[str]:
    model = to_float32(build_model(params, IMAGE_SHAPE, 10, images=1), params)
    return [layer.name for layer in model.layers]


def sides_of(params: Hyperparameters) -> list[int]:
    model = to_float32(build_model(params, IMAGE_SHAPE, 10), params)
    return [layer.output.shape[1] for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def test_a_network_beyond_the_limit_of_a_model_file_is_refused() -> None:
    params = small(filters_3=512, padding="same", dense_units=4096)
    with pytest.raises(BadInputError, match=r"has 1\d\d,\d{3},\d{3} parameters. Expected at most 30,000,000"):
        build_model(params, IMAGE_SHAPE, 10)


def test_off_they_leave_the_blog_s_network() -> None:
    assert layers_of(Hyperparameters()) == [
        "input_scale",
        *("conv_1", "pool_1", "relu_1", "conv_2", "pool_2", "relu_2", "conv_3"),
        *("flatten", "dense", "probabilities"),
    ]


def test_a_stage_has_one_or_two_convolutions_and_is_pooled_after_the_first() -> None:
    named = layers_of(small(convolutions_2=2, padding="same"))
    assert named[4:9] == ["conv_2", "pool_2", "relu_2", "conv_2_2", "conv_3"]
    assert sides_of(small(convolutions_2=2, padding="same")) == [28, 14, 7, 7]
    twice = small(convolutions_1=2, convolutions_3=2, padding="same", poolings=3)
    assert sides_of(twice) == [28, 14, 14, 7, 3]


def test_valid_padding_shortens_a_side_with_every_first_convolution() -> None:
    assert sides_of(small()) == [26, 11, 3]
    assert sides_of(small(convolutions_1=2)) == [26, 13, 11, 3]


@pytest.mark.parametrize(
    ("changes", "smallest"),
    [({}, 18), ({"padding": "same"}, 4), ({"padding": "same", "poolings": 3}, 8), ({"poolings": 3}, 22)],
)
def test_images_below_the_smallest_that_fit_are_refused(changes: dict[str, Any], smallest: int) -> None:
    build_model(small(**changes), (smallest, smallest, 1), 10)
    with pytest.raises(BadInputError, match=f"Expected at least {smallest} x {smallest}"):
        build_model(small(**changes), (smallest - 1, smallest, 1), 10)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_normalization_comes_before_every_activation(padding: str) -> None:
    params = small(normalization="batch", normalization_momentum=0.7, padding=padding)
    named = layers_of(params)
    assert named[1:5] == ["conv_1", "pool_1", "norm_1", "relu_1"]
    assert named[9:12] == ["conv_3", "norm_3", "relu_3"]
    model = build_model(params, IMAGE_SHAPE, 10)
    assert {layer.momentum for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)} == {0.7}
    # The normalization has a shift of its own.
    assert not any(layer.use_bias for layer in model.layers if isinstance(layer, keras.layers.Conv2D))


@pytest.mark.parametrize(("name", "at_minus_one"), [("relu", 0.0), ("gelu", -0.1587), ("silu", -0.2689)])
def test_the_activation_follows_every_convolution_and_the_dense_layer(name: str, at_minus_one: float) -> None:
    model = to_float32(build_model(small(activation=name), IMAGE_SHAPE, 10), small(activation=name))
    minus_one = tf.fill((1, 1, 1, 1), -1.0)
    functions: list[Callable[[tf.Tensor], tf.Tensor]] = [
        model.get_layer(f"{name}_1"),
        model.get_layer(f"{name}_2"),
        model.get_layer("conv_3").activation,
        model.get_layer("dense").activation,
    ]
    assert [float(np.squeeze(function(minus_one))) for function in functions] == pytest.approx(
        [at_minus_one] * 4, abs=1e-3
    )


@pytest.mark.parametrize(("head", "expected"), [("flatten", [9.0, 1.0]), ("max", [9.0]), ("average", [1.0])])
def test_the_head_takes_all_places_their_maximum_or_their_mean(head: str, expected: list[float]) -> None:
    layer = build_model(small(head=head), IMAGE_SHAPE, 10).get_layer(head)
    places = np.zeros((1, 3, 3, 1), np.float32)
    places[0, 1, 1] = 9
    found = np.squeeze(layer(places))
    assert found.max() == expected[0]
    assert found.mean() == expected[-1]


def test_without_dense_units_the_head_goes_to_the_classes() -> None:
    assert layers_of(small(head="average", dense_units=0))[-2:] == ["average", "probabilities"]


def test_dropout_leaves_values_out_in_training_alone() -> None:
    layer = build_model(small(dropout=0.25), IMAGE_SHAPE, 10).get_layer("dropout")
    ones = np.ones((100, 100), np.float32)
    assert np.mean(layer(ones, training=True) == 0) == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(layer(ones), ones)


def rates_of(params: Hyperparameters, images: int = 640) -> list[float]:
    rate = build_model(params, IMAGE_SHAPE, 10, images=images).optimizer._learning_rate
    return [float(rate(step)) for step in range(params.epochs * math.ceil(images / params.batch_size))]


def test_inverse_time_has_no_warmup() -> None:
    rates = rates_of(small(learning_rate=1.0, decay=0.5, warmup=0.25))
    assert rates[:3] == pytest.approx([1, 1 / 1.5, 1 / 2])


def test_a_constant_rate_stays_after_its_warmup() -> None:
    rates = rates_of(small(schedule="constant", learning_rate=1.0, warmup=0.25))
    assert len(rates) == 40
    assert rates == pytest.approx([*(step / 10 for step in range(1, 10)), *[1.0] * 31])


def test_one_cycle_rises_and_falls_to_zero() -> None:
    rates = rates_of(small(schedule="one_cycle", learning_rate=1.0, warmup=0.25))
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[10:] == pytest.approx([left / 30 for left in range(30, 0, -1)], rel=1e-5)


def test_the_cosine_falls_slowly_at_its_ends() -> None:
    rates = rates_of(small(schedule="cosine", learning_rate=1.0))
    assert rates == pytest.approx([(1 + math.cos(math.pi * step / 40)) / 2 for step in range(40)], abs=1e-6)


def test_a_schedule_over_the_whole_training_asks_for_the_images() -> None:
    with pytest.raises(ValueError, match="schedule one_cycle needs the number of images"):
        build_model(small(schedule="one_cycle"), IMAGE_SHAPE, 10)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_weight_decay_shrinks_kernels_and_nothing_else(optimizer: str) -> None:
    params = small(optimizer=optimizer, weight_decay=0.1, learning_rate=0.5, normalization="batch")
    model = build_model(params, IMAGE_SHAPE, 10)
    before = {variable.path: variable.numpy() for variable in model.trainable_variables}
    model.optimizer.apply([tf.zeros_like(variable) for variable in model.trainable_variables])
    for variable in model.trainable_variables:
        share = 1 - 0.5 * 0.1 if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(variable.numpy(), share * before[variable.path], rtol=1e-5)


def test_momentum_is_nesterov_s() -> None:
    optimizer = build_model(small(optimizer="sgd", momentum=0.9), IMAGE_SHAPE, 10).optimizer
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, True)
    assert not build_model(small(optimizer="sgd"), IMAGE_SHAPE, 10).optimizer.nesterov


def test_label_smoothing_spreads_a_share_over_all_classes() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1]], np.float32)
    model = build_model(small(label_smoothing=0.3), IMAGE_SHAPE, 3)
    targets = np.array([0.3 / 3, 0.7 + 0.3 / 3, 0.3 / 3])
    expected = -np.sum(targets * np.log(probabilities[0]))
    assert float(model.compute_loss(y=np.array([1]), y_pred=probabilities)) == pytest.approx(expected, rel=1e-5)


def go_on(_epoch: Epoch) -> bool:
    return True


def trained(data: Dataset, params: Hyperparameters, precision: Precision = Precision.FLOAT32, seed: int = 3) -> Any:
    keras.utils.set_random_seed(seed)
    model = build_model(params, data.image_shape, 10, precision, images=len(data.train.labels))
    saved: list[Checkpoint] = []
    outcome = fit(model, data.train, data.validation, params, seed, go_on, saved.append)
    return model, outcome, saved


def test_averaged_weights_count_and_the_training_goes_on_with_its_own(digits: Dataset) -> None:
    plain, averaged = (trained(digits, small(averaging=share, learning_rate=1e-3)) for share in (0.0, 0.9))
    for ours, theirs in zip(averaged[2], plain[2], strict=True):
        for weight, expected in zip(ours.weights, theirs.weights, strict=True):
            np.testing.assert_array_equal(weight, expected)
    first = averaged[2][0]
    assert not np.array_equal(first.best_weights[0], first.weights[0])
    measured = averaged[0].evaluate(digits.validation.images, digits.validation.labels, verbose=0, return_dict=True)
    best = averaged[1].epochs[averaged[1].best_epoch - 1]
    assert measured["accuracy"] == pytest.approx(best.val_accuracy)


def test_the_average_of_weights_forgets_by_its_share() -> None:
    model = build_model(small(optimizer="sgd", averaging=0.75, learning_rate=1.0), IMAGE_SHAPE, 10)
    kernel = model.trainable_variables[0]
    values, gradients = [], [tf.zeros_like(variable) for variable in model.trainable_variables]
    for step in (1.0, 2.0, 3.0):
        model.optimizer.apply([tf.fill(kernel.shape, step), *gradients[1:]])
        values.append(kernel.numpy())
    expected = values[0]
    for value in values[1:]:
        expected = 0.75 * expected + 0.25 * value
    model.optimizer.finalize_variable_values(model.trainable_variables)
    np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("precision", list(Precision))
def test_everything_at_once_goes_on_after_a_checkpoint_to_the_bit(
    digits: Dataset, precision: Precision, tmp_path: Path
) -> None:
    model, whole, saved = trained(digits, WIDE, precision)
    assert whole.state is TrialState.COMPLETE

    for checkpoint in saved[:2]:
        keras.utils.set_random_seed(99)
        save(tmp_path / "one.checkpoint", checkpoint, {"parameters": {}}, {})
        _, start = load(tmp_path / "one.checkpoint")
        again = build_model(WIDE, digits.image_shape, 10, precision, images=len(digits.train.labels))
        start.restore(again)
        continued = fit(again, digits.train, digits.validation, WIDE, 3, go_on, None, start)

        assert [epoch.val_loss for epoch in continued.epochs] == [epoch.val_loss for epoch in whole.epochs]
        for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_draws_of_an_epoch_are_gone_with_it(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[object]] = []
    drawn = Augmentation.drawn

    def remember(*args: Any) -> Augmentation | None:
        augmentation = drawn(*args)
        kept.append(weakref.ref(augmentation))
        return augmentation

    monkeypatch.setattr(Augmentation, "drawn", remember)
    trained(digits, small(flip="random", epochs=3))
    gc.collect()
    assert [reference() is None for reference in kept[:2]] == [True, True]


def test_everything_at_once_is_saved_checked_and_loaded(digits: Dataset, tmp_path: Path) -> None:
    model, _, _ = trained(digits, WIDE)
    logged = to_float32(model, WIDE)
    logged.save(tmp_path / "model.keras")

    loaded = load_model_file(tmp_path / "model.keras", WIDE)

    pixels = digits.validation.images[:50]
    np.testing.assert_array_equal(loaded(pixels), logged(pixels))
    np.testing.assert_allclose(loaded(pixels), model(pixels, training=False), atol=1e-5)


def test_views_average_the_picture_and_its_mirror_image(digits: Dataset) -> None:
    keras.utils.set_random_seed(0)
    params = small(input_scale="unit")
    network = to_float32(build_model(params, IMAGE_SHAPE, 10), params)
    pixels = digits.validation.images[:20]
    expected = (network(pixels) + network(pixels[:, :, ::-1])) / 2
    np.testing.assert_allclose(with_views(network, "mirror")(pixels), expected, atol=1e-6)
    assert with_views(network, "none") is network
    assert not np.allclose(expected, network(pixels), atol=1e-3)


def test_a_model_with_views_loads_anywhere_in_safe_mode(digits: Dataset, tmp_path: Path) -> None:
    params = WIDE.model_copy(update={"views": "mirror"})
    model = with_views(to_float32(build_model(WIDE, IMAGE_SHAPE, 10, images=1), WIDE), "mirror")
    model.save(tmp_path / "model.keras")
    pixels = digits.validation.images[:20]

    by_keras = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    checked = load_model_file(tmp_path / "model.keras", params)

    for loaded in (by_keras, checked):
        np.testing.assert_array_equal(loaded(pixels), model(pixels))
    with pytest.raises(DamagedModelError, match="found the layers"):
        load_model_file(tmp_path / "model.keras", WIDE)


def test_views_that_are_wired_in_another_way_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SMALL.model_copy(update={"views": "mirror"})
    network = to_float32(build_model(SMALL, IMAGE_SHAPE, 10), SMALL)
    flip = keras.ops.flip
    with monkeypatch.context() as patched:
        patched.setattr(keras.ops, "flip", lambda pixels, axis: flip(pixels, axis - 1))
        with_views(network, "mirror").save(tmp_path / "upside_down.keras")
        patched.setattr(keras.ops, "flip", lambda pixels, axis: flip(flip(pixels, axis), axis))
        with_views(network, "mirror").save(tmp_path / "twice.keras")

    with pytest.raises(DamagedModelError, match="a Flip with 'axis' 1"):
        load_model_file(tmp_path / "upside_down.keras", params)
    with pytest.raises(DamagedModelError, match="found the layers"):
        load_model_file(tmp_path / "twice.keras", params)

    with_views(network, "mirror").save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(
        layer["name"] for layer in json.loads(members["config.json"])["config"]["layers"] if "lip" in layer["name"]
    )
    changes = {
        # The second view is the first again.
        "inbound_nodes": (f'"keras_history": ["{name}', '"keras_history": ["pixels'),
        "the names of layers": ('"name": "conv_1", "inbound', '"name": "conv_2", "inbound'),
        "nested too deeply": ('"inbound_nodes": []', f'"inbound_nodes": {"[" * 800}{"]" * 800}'),
    }
    for said, (before, after) in changes.items():
        config = members["config.json"].decode().replace(before, after)
        assert config != members["config.json"].decode(), said
        with zipfile.ZipFile(tmp_path / "changed.keras", "w") as archive:
            for member, content in (members | {"config.json": config.encode()}).items():
                archive.writestr(member, content)
        with pytest.raises(DamagedModelError, match=said):
            load_model_file(tmp_path / "changed.keras", params)
