import math
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pytest
import tensorflow as tf
from mlflow import MlflowClient
from mlflow.entities import Param

from fashion_study.data.catalog import locate
from fashion_study.data.dataset import Dataset
from fashion_study.store.checkpoints import Checkpoints
from fashion_study.trial import (
    AttemptLost,
    EarlierTrial,
    EpochReport,
    FailReason,
    Hyperparameters,
    Precision,
    TrialResult,
    TrialSpec,
    TrialState,
    WorkerSettings,
)
from fashion_study.worker import trainer
from fashion_study.worker.trainer import Trainer
from tests.support.empty_store import empty_store

SMALL = Hyperparameters(
    filters_1=8, filters_2=8, filters_3=8, dense_units=16, learning_rate=0.003, batch_size=32, epochs=2
)
ONE_EPOCH = SMALL.model_copy(update={"epochs": 1})


class Bench:
    """One worker's trainer at a real store, and the reports that a coordinator would have seen."""

    def __init__(self, root: Path) -> None:
        store = empty_store(root)
        self.client: MlflowClient = store.client()
        self._experiment_id = store.experiment_id(self.client, "digits")
        checkpoints = root / "checkpoints"
        checkpoints.mkdir()
        self.settings = WorkerSettings(locate("digits"), 200, 1, store.tracking_uri, checkpoints=checkpoints)
        self.trainer = Trainer(self.settings)

    def spec(self, params: Hyperparameters = SMALL, precision: Precision = Precision.FLOAT32) -> TrialSpec:
        run_id = self.client.create_run(self._experiment_id).info.run_id
        self.client.log_batch(run_id, params=[Param(name, str(value)) for name, value in params.model_dump().items()])
        return TrialSpec(5, 1, params, 1234, run_id, precision)

    def train(
        self,
        spec: TrialSpec,
        go_on: Callable[[EpochReport], bool] = lambda _: True,
        trainer: Trainer | None = None,
    ) -> tuple[TrialResult, list[EpochReport]]:
        end, reports = self.attempt(spec, go_on, trainer)
        assert isinstance(end, TrialResult)
        return end, reports

    def attempt(
        self,
        spec: TrialSpec,
        go_on: Callable[[EpochReport], bool] = lambda _: True,
        trainer: Trainer | None = None,
    ) -> tuple[TrialResult | AttemptLost, list[EpochReport]]:
        reports: list[EpochReport] = []

        def answer(report: EpochReport) -> bool:
            reports.append(report)
            return go_on(report)

        return (trainer or self.trainer).train(spec, answer), reports

    def artifacts(self, run_id: str) -> set[str]:
        return {artifact.path for artifact in self.client.list_artifacts(run_id)}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        # TensorFlow takes its threads once in the life of a process, and other tests have used it already.
        patch.setattr(trainer, "configure", lambda _threads: None)
        yield Bench(tmp_path_factory.mktemp("store"))
        # The trainer has set MLflow's address for its whole process: a worker's own, but shared with other tests here.
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Attempt:
    """An attempt that has ended, and what it reported."""

    spec: TrialSpec
    result: TrialResult
    reports: list[EpochReport]


@pytest.fixture(scope="module")
def complete(bench: Bench) -> Attempt:
    spec = bench.spec()
    return Attempt(spec, *bench.train(spec))


@pytest.fixture(scope="module")
def pruned(bench: Bench) -> Attempt:
    spec = bench.spec(SMALL.model_copy(update={"epochs": 3}))
    return Attempt(spec, *bench.train(spec, go_on=lambda report: report.epoch < 2))


def validation_accuracy(result: TrialResult, data: Dataset) -> float:
    model = mlflow.keras.load_model(result.tags["model_uri"], load_model_kwargs={"safe_mode": True})
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    predicted = model.predict(data.validation.images, verbose=0).argmax(axis=1)
    return float(np.mean(predicted == data.validation.labels))


def test_a_complete_trial_reports_epochs_and_logs_artifacts(bench: Bench, complete: Attempt, digits: Dataset) -> None:
    result, reports = complete.result, complete.reports
    assert result.state is TrialState.COMPLETE, result.message
    assert (result.number, result.attempt, result.epochs_run) == (5, 1, 2)
    assert [(report.number, report.attempt, report.epoch) for report in reports] == [(5, 1, 1), (5, 1, 2)]
    assert result.objective == result.metrics["objective"] == validation_accuracy(result, digits)
    assert result.objective == pytest.approx(reports[-1].val_accuracy)
    assert result.metrics["best_val_accuracy"] == max(report.val_accuracy for report in reports)
    assert result.metrics["train_seconds"] == pytest.approx(sum(report.seconds for report in reports))
    assert bench.artifacts(complete.spec.run_id) == {
        "confusion_matrix.png",
        "confusion_matrix.json",
        "classification_report.json",
        "predictions.png",
        "most_confused.json",
    }


def test_the_life_of_a_run_is_the_coordinators(bench: Bench, complete: Attempt) -> None:
    run = bench.client.get_run(complete.spec.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.metrics == {}


def test_an_unrecorded_attempt_trains_the_same_and_logs_nothing(bench: Bench, complete: Attempt) -> None:
    unrecorded = bench.spec()
    trainer, first = Trainer(replace(bench.settings, records=False)), complete.result
    other, _ = bench.train(replace(unrecorded, seed=4321), trainer=trainer)

    again, same_curve = bench.train(unrecorded, trainer=trainer)

    curves = (complete.reports, same_curve)
    untimed = [[replace(report, seconds=0, images_per_second=0) for report in each] for each in curves]
    assert untimed[0] == untimed[1]
    timed = {"train_seconds": 0.0, "ms_per_image": 0.0}
    assert again.metrics | timed == first.metrics | timed
    assert again.tags == {
        name: value for name, value in first.tags.items() if not name.startswith(("model_", "evidence_"))
    }
    assert other.tags["weights_sha256"] != first.tags["weights_sha256"] == again.tags["weights_sha256"]
    run = bench.client.get_run(unrecorded.run_id)
    assert (run.data.metrics, run.data.tags.get("model_uri")) == ({}, None)


def test_on_all_images_a_model_is_logged_that_nothing_validated(bench: Bench, digits: Dataset) -> None:
    spec = bench.spec(ONE_EPOCH)
    pool = Trainer(replace(bench.settings, limit_train=None, pool=True))

    result, (report,) = bench.train(spec, trainer=pool)

    assert (result.state, result.objective, math.isnan(report.val_accuracy)) == (TrialState.COMPLETE, None, True)
    assert result.metrics.keys() == {"parameter_count", "train_seconds"}
    assert {"model_uri", "model_sha256", "weights_sha256"} <= result.tags.keys()
    assert bench.artifacts(spec.run_id) == set()
    assert len(pool._train_images.labels) == len(digits.train.labels) + len(digits.validation.labels)


def test_a_result_says_in_what_environment_it_was_reached(pruned: Attempt, complete: Attempt) -> None:
    for result in (pruned.result, complete.result):
        assert (result.tags["threads"], result.tags["device"]) == ("1", "CPU")
        assert result.tags["onednn"] in ("1", "TensorFlow's default")
        assert (result.tags["tensorflow"], result.tags["numpy"]) == (version("tensorflow"), version("numpy"))
        assert result.tags["keras"] == version("keras")
        assert result.tags["cpu"]
        assert result.tags["library_variables"]
        assert len(result.tags["weights_sha256"]) == 64


def test_a_trial_that_is_told_to_stop_ends_there_as_pruned(bench: Bench, pruned: Attempt) -> None:
    result = pruned.result
    assert (result.state, result.epochs_run, result.reason) == (TrialState.PRUNED, 2, None)
    assert [report.epoch for report in pruned.reports] == [1, 2]
    assert result.objective is None
    assert bench.artifacts(pruned.spec.run_id) == set()
    outputs = bench.client.get_run(pruned.spec.run_id).outputs
    assert outputs is not None
    assert outputs.model_outputs == []


def test_a_trial_whose_loss_diverges_fails_with_that_reason(bench: Bench) -> None:
    # Wide, so that not all its units can die before one explodes, whatever the last bits of this machine.
    wide = {"filters_1": 64, "filters_2": 64, "filters_3": 64, "dense_units": 1024}
    steep = {"optimizer": "sgd", "learning_rate": 10.0, "batch_size": 8}
    doomed = SMALL.model_copy(update=wide | steep)

    result, reports = bench.train(bench.spec(doomed))

    assert (result.state, result.reason) == (TrialState.FAILED, FailReason.DIVERGED)
    assert (result.epochs_run, reports, result.objective) == (0, [], None)
    assert "The loss became nan in epoch 1" in result.message


def test_but_for_the_baseline_too_large_a_model_is_not_trained(bench: Bench) -> None:
    limited = Trainer(replace(bench.settings, max_parameters=2_000))
    spec = bench.spec(ONE_EPOCH)

    result, reports = bench.train(spec, trainer=limited)

    assert (result.state, result.reason) == (TrialState.FAILED, FailReason.INFEASIBLE)
    assert (result.epochs_run, reports, result.objective) == (0, [], None)
    assert result.cause.startswith("The network has 2,586 parameters. Expected at most 2,000")
    assert result.metrics == {"parameter_count": 2_586}
    assert bench.train(replace(spec, number=0), trainer=limited)[0].state is TrialState.COMPLETE
    huge = SMALL.model_copy(update={"padding": "same", "filters_3": 512, "dense_units": 4096})
    assert bench.train(bench.spec(huge))[0].reason is FailReason.INFEASIBLE
    exact = Trainer(replace(bench.settings, max_parameters=2_586))
    assert bench.train(bench.spec(ONE_EPOCH), trainer=exact)[0].state is TrialState.COMPLETE


def exhaust_tensorflow() -> None:
    raise tf.errors.ResourceExhaustedError(None, None, "failed to allocate memory")


def exhaust_python() -> None:
    bytearray(2**62)


def test_an_error_ends_the_trial_but_not_the_worker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    faults: tuple[tuple[Callable[[], object], FailReason, str], ...] = (
        (lambda: 1 / 0, FailReason.ERROR, "ZeroDivisionError"),
        (exhaust_python, FailReason.OOM, "MemoryError"),
        (exhaust_tensorflow, FailReason.OOM, "failed to allocate memory"),
    )
    for fault, reason, told in faults:
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "evaluate", lambda *_, fault=fault: fault())
            result, reports = bench.train(bench.spec(ONE_EPOCH))

        assert (result.state, result.reason) == (TrialState.FAILED, reason)
        assert "Traceback" in result.message
        assert told in result.message
        assert result.epochs_run == len(reports) == 1
    assert bench.train(bench.spec(ONE_EPOCH))[0].state is TrialState.COMPLETE


def test_a_run_that_is_gone_loses_the_attempt(bench: Bench) -> None:
    lost, reports = bench.attempt(replace(bench.spec(ONE_EPOCH), run_id="0" * 32))

    assert isinstance(lost, AttemptLost)
    assert lost.cause.startswith("the store failed: MlflowException: ")
    assert "0" * 32 in lost.cause
    assert len(reports) == 1


def test_a_store_that_fails_loses_the_attempt_not_the_trial(bench: Bench) -> None:
    spec = bench.spec(ONE_EPOCH)
    # A real limit of this process: no file grows beyond it, as on a full disk.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        lost, _ = bench.attempt(spec)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert isinstance(lost, AttemptLost)
    assert (lost.number, lost.attempt) == (5, 1)
    assert lost.cause.startswith("the store failed: ")
    assert bench.train(bench.spec(ONE_EPOCH))[0].state is TrialState.COMPLETE


def test_a_bfloat16_trial_is_evaluated_as_its_float32_model(bench: Bench, digits: Dataset) -> None:
    params = ONE_EPOCH
    result, _ = bench.train(bench.spec(params, Precision.BFLOAT16))
    assert result.state is TrialState.COMPLETE, result.message
    assert result.objective == validation_accuracy(result, digits)


@pytest.fixture(scope="module")
def earlier(bench: Bench) -> Attempt:
    """Train a trial of one epoch from which others may go on."""
    spec = replace(bench.spec(ONE_EPOCH), number=3, seed=99)
    return Attempt(spec, *bench.train(spec))


def test_a_trial_goes_on_from_the_checkpoint_of_an_earlier_one(bench: Bench, earlier: Attempt) -> None:
    continues = EarlierTrial(3, earlier.spec.run_id, 1, ((99, 1),))
    spec = replace(bench.spec(SMALL), number=6, continues=continues)

    result, reports = bench.train(spec)

    assert result.state is TrialState.COMPLETE, result.message
    assert [report.epoch for report in reports] == [2]
    assert result.epochs_run == 2
    assert result.tags["continued_after_epoch"] == "1"
    assert "continuation_lost" not in result.tags
    assert result.metrics["train_seconds"] == pytest.approx(reports[0].seconds)

    checkpoints = Checkpoints.of(bench.settings)
    assert checkpoints is not None
    checkpoints.discard(earlier.spec.label)
    again, reports = bench.train(replace(spec, run_id=bench.spec(SMALL).run_id))

    # Trained again with the earlier trial's seed.
    assert [report.epoch for report in reports] == [2]
    assert again.tags["weights_sha256"] == result.tags["weights_sha256"]
    assert again.tags["continuation_lost"].startswith("trial 003: the checkpoint")


def test_the_objective_is_that_of_the_best_epoch(bench: Bench, digits: Dataset) -> None:
    # A rate at which the accuracy falls again.
    params = SMALL.model_copy(update={"epochs": 6, "learning_rate": 0.02})
    result, reports = bench.train(bench.spec(params))

    curve = [report.val_accuracy for report in reports]
    best = curve.index(max(curve)) + 1
    assert best < 6
    assert result.metrics["best_epoch"] == best
    assert result.objective == pytest.approx(max(curve))
    assert result.metrics["last_val_accuracy"] == curve[-1] < max(curve)
    assert result.metrics["last_val_loss"] == reports[-1].val_loss
    assert result.objective == validation_accuracy(result, digits)


def test_images_that_are_prepared_are_not_read_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(bench.settings, limit_train=100)
    Trainer.prepare(settings)
    monkeypatch.setattr(trainer, "load_dataset", lambda *_: pytest.fail("the images are read again"))

    Trainer(settings)
