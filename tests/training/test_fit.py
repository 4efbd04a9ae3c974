import math
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from fashion_study.data.catalog import load_dataset, locate
from fashion_study.data.dataset import Dataset, Split
from fashion_study.training.fit import FitOutcome, fit, probe
from fashion_study.training.model import build_model
from fashion_study.trial import Epoch, Hyperparameters, Precision, ProbeOrder, TrialState

IMAGE_SHAPE = (28, 28, 1)
SMALL = Hyperparameters(
    filters_1=8, filters_2=8, filters_3=8, dense_units=16, learning_rate=0.003, batch_size=64, epochs=2
)


def go_on(_epoch: Epoch) -> bool:
    return True


def train(data: Dataset, params: Hyperparameters, seed: int) -> tuple[keras.Model, FitOutcome]:
    keras.utils.set_random_seed(seed)
    model = build_model(params, IMAGE_SHAPE, 10)
    return model, fit(model, data.train, data.validation, params, seed, go_on)


def test_training_follows_from_parameters_and_seed(digits: Dataset) -> None:
    (first, _), (again, _), (other, _) = (train(digits, SMALL, seed) for seed in (3, 3, 4))
    for ours, theirs in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(first.get_weights()[0], other.get_weights()[0])


def test_every_epoch_sees_all_images_in_an_order_of_its_own() -> None:
    n = 20
    numbered = Split(np.zeros((n, 28, 28, 1), dtype=np.uint8), np.arange(n))

    def orders(seed: int) -> list[list[int]]:
        seen: list[list[int]] = []

        def note(batches: tf.data.Dataset, **_: object) -> SimpleNamespace:
            seen.append([int(label) for _, labels in batches for label in labels])
            return SimpleNamespace(history={"loss": [0.0], "accuracy": [0.0]})

        tf.random.set_seed(seed)
        model = SimpleNamespace(
            fit=note, get_weights=list, set_weights=list, layers=[], optimizer=SimpleNamespace(use_ema=False)
        )
        fit(
            model,
            numbered,
            None,
            Hyperparameters(batch_size=8, epochs=3),
            seed,
            go_on,
        )
        return seen

    epochs = orders(1)
    assert [sorted(order) for order in epochs] == [list(range(n))] * 3
    assert len({tuple(order) for order in [*epochs, list(range(n))]}) == 4
    assert orders(1) == epochs
    assert orders(2) != epochs


def test_every_epoch_is_reported_as_keras_measures_it(digits: Dataset) -> None:
    seen: list[Epoch] = []
    keras.utils.set_random_seed(0)
    model = build_model(SMALL, IMAGE_SHAPE, 10)

    def watch(epoch: Epoch) -> bool:
        seen.append(epoch)
        return True

    outcome = fit(model, digits.train, digits.validation, SMALL, 0, watch)

    assert outcome.state is TrialState.COMPLETE
    assert outcome.epochs == tuple(seen)
    assert [epoch.epoch for epoch in seen] == [1, 2]
    measured = model.evaluate(digits.validation.images, digits.validation.labels, verbose=0, return_dict=True)
    assert seen[-1].val_loss == pytest.approx(measured["loss"], rel=1e-4)
    assert seen[-1].val_accuracy == pytest.approx(measured["accuracy"])
    assert seen[1].train_loss < seen[0].train_loss
    for epoch in seen:
        assert epoch.images_per_second == pytest.approx(len(digits.train.labels) / epoch.seconds)


def test_it_learns_the_digits(digits: Dataset) -> None:
    params = Hyperparameters(filters_1=16, filters_2=32, filters_3=32, learning_rate=0.002, batch_size=32, epochs=5)
    _, outcome = train(digits, params, 0)
    assert outcome.epochs[-1].val_accuracy > 0.8


def test_it_learns_fashion_mnist(fashion_mnist_dir: Path) -> None:
    data = load_dataset(locate("fashion-mnist", fashion_mnist_dir), limit_train=3000)
    small = Split(data.validation.images[:1000], data.validation.labels[:1000])
    params = Hyperparameters(learning_rate=0.001, batch_size=64, epochs=2)
    keras.utils.set_random_seed(0)
    outcome = fit(build_model(params, IMAGE_SHAPE, 10), data.train, small, params, 0, go_on)
    assert outcome.epochs[-1].val_accuracy > 0.65


def test_a_fit_ends_where_it_is_told_to(digits: Dataset) -> None:
    keras.utils.set_random_seed(0)
    params = SMALL.model_copy(update={"epochs": 9})
    outcome = fit(
        build_model(params, IMAGE_SHAPE, 10), digits.train, digits.validation, params, 0, lambda epoch: epoch.epoch < 2
    )
    assert outcome.state is TrialState.PRUNED
    assert [epoch.epoch for epoch in outcome.epochs] == [1, 2]


def test_without_validation_images_a_fit_completes_and_says_so(digits: Dataset) -> None:
    keras.utils.set_random_seed(0)
    outcome = fit(build_model(SMALL, IMAGE_SHAPE, 10), digits.train, None, SMALL, 0, go_on)
    assert outcome.state is TrialState.COMPLETE
    assert math.isnan(outcome.epochs[-1].val_accuracy)
    assert math.isfinite(outcome.epochs[-1].train_loss)


def test_a_loss_that_is_no_number_ends_the_fit_within_its_epoch(digits: Dataset) -> None:
    params = SMALL.model_copy(update={"optimizer": "sgd", "learning_rate": 10.0, "batch_size": 4})
    keras.utils.set_random_seed(0)
    model = build_model(params, IMAGE_SHAPE, 10)
    reported: list[Epoch] = []

    def watch(epoch: Epoch) -> bool:
        reported.append(epoch)
        return True

    outcome = fit(model, digits.train, digits.validation, params, 0, watch)

    assert outcome.state is TrialState.FAILED
    assert reported == []
    assert [epoch.epoch for epoch in outcome.epochs] == [1]
    assert not math.isfinite(outcome.epochs[0].train_loss)
    steps_of_an_epoch = len(digits.train.labels) // 4
    assert int(model.optimizer.iterations) < steps_of_an_epoch


@pytest.mark.parametrize("layer", ["conv_1", "conv_2", "conv_3", "dense"])
def test_weights_of_nan_are_divergence_though_a_relu_hides_it(digits: Dataset, layer: str) -> None:
    keras.utils.set_random_seed(0)
    model = build_model(SMALL, IMAGE_SHAPE, 10)
    kernel = model.get_layer(layer).kernel
    kernel.assign(kernel * math.nan)
    outcome = fit(model, digits.train, digits.validation, SMALL, 0, go_on)
    assert outcome.state is TrialState.FAILED
    assert math.isnan(outcome.epochs[0].train_loss)


def test_weights_that_the_last_step_ruined_count_as_diverged(digits: Dataset) -> None:
    # One step an epoch: its loss is taken before it ruins the weights.
    params = SMALL.model_copy(update={"batch_size": len(digits.train.labels)})
    keras.utils.set_random_seed(0)
    model = build_model(params, IMAGE_SHAPE, 10)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate=math.nan),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    outcome = fit(model, digits.train, digits.validation, params, 0, go_on)
    assert outcome.state is TrialState.FAILED
    assert math.isnan(outcome.epochs[0].train_loss)
    assert math.isnan(outcome.epochs[0].val_loss)


def test_the_probe_measures_both_precisions_and_keeps_the_faster() -> None:
    found = probe((32, 40, 3), 3, ProbeOrder())
    assert set(found.images_per_second) == {"float32", "bfloat16"}
    assert all(speed > 0 for speed in found.images_per_second.values())
    assert found.costs == ()
    assert found.precision.value == max(found.images_per_second, key=lambda name: found.images_per_second[name])


def test_the_probe_measures_points_in_the_precision_that_is_known() -> None:
    small = Hyperparameters(filters_1=4, filters_2=4, filters_3=4, dense_units=0, batch_size=8, schedule="one_cycle")
    order = ProbeOrder(Precision.FLOAT32, (small, Hyperparameters(batch_size=8)))
    found = probe((28, 28, 1), 10, order, max_parameters=10_000)
    assert (found.precision, found.images_per_second) == (Precision.FLOAT32, {})
    assert [cost.parameters for cost in found.costs] == [706, 93_322]
    # The second one is too large to be trained.
    assert found.costs[0].seconds_per_image > 0 == found.costs[1].seconds_per_image
    assert found.costs[0].start_seconds > 0 == found.costs[1].start_seconds
