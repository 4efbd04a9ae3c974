"""The promises of the simulated workers: their time is virtual, the coordinator's is real."""

import pytest

from benchmarks.busy import VirtualWorkers
from fashion_study.config import PrunerName
from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.space.file import load_space
from fashion_study.store.trials import TrialStorage
from fashion_study.study.loop import Loop
from fashion_study.study.progress import Observer
from fashion_study.study.proposals import Proposals
from fashion_study.testing.memory import MemoryCheckpoints, MemoryTracker, memory_storage
from fashion_study.trial import Precision, TrialState

SPACE = load_space("baseline")


def study_of(workers: VirtualWorkers, trials: int, pruner: PrunerName) -> tuple[TrialStorage, MemoryTracker]:
    trial_storage = TrialStorage(memory_storage(), "busy")
    engine = OptunaEngine(trial_storage, SPACE, "random", pruner)
    checkpoints, tracker = MemoryCheckpoints.having(workers.curve), MemoryTracker()
    source = Proposals(engine, tracker, Observer(), Precision.FLOAT32, trials, checkpoints)
    Loop(source, workers, Observer()).run()
    return trial_storage, tracker


def test_workers_are_busy_with_trials_that_take_long() -> None:
    workers = VirtualWorkers(3, lambda _: 1e6)
    trial_storage, _ = study_of(workers, 12, "none")

    figures = workers.figures()

    assert figures["busy"] == pytest.approx(1, abs=1e-3)
    assert figures["trials"] == 12 - 3
    assert figures["epochs"] == trial_storage.epochs_trained()


def test_a_trial_that_goes_on_trains_no_epoch_again() -> None:
    workers = VirtualWorkers(3, lambda _: 1e6)
    trial_storage, _ = study_of(workers, 12, "asha")

    assert {record.state for record in trial_storage.records()} == {TrialState.COMPLETE, TrialState.PAUSED}
    assert workers.figures()["epochs"] == trial_storage.epochs_trained()


def test_epochs_that_wait_together_are_logged_together() -> None:
    # Of all reports that come before the first is logged.
    trial_storage, tracker = study_of(VirtualWorkers(3, lambda _: 1e-6), 12, "none")
    logged = [line for line in tracker.journal if line.startswith("log ")]
    assert len(logged) < trial_storage.epochs_trained()
    assert all(
        [epoch.epoch for epoch in run.epochs] == list(range(1, len(run.epochs) + 1)) for run in tracker.runs.values()
    )


def test_workers_are_idle_while_the_coordinator_works() -> None:
    workers = VirtualWorkers(3, lambda _: 1e-6)
    study_of(workers, 12, "none")

    assert workers.figures()["busy"] < 0.5
