"""The promises of the cache of trials: it equals the database, after every write and when it is read again."""

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from fashion_study.engines.engine import Point
from fashion_study.store.trials import TrialStorage
from fashion_study.trial import FailReason, TrialResult, TrialState

DISTRIBUTIONS = {
    "learning_rate": FloatDistribution(1e-4, 1.0, log=True),
    "filters_1": IntDistribution(16, 48, step=8),
    "batch_size": CategoricalDistribution((64, 128)),
    "optimizer": CategoricalDistribution(("adam", "sgd")),
}
POINT: Point = {"learning_rate": 0.5, "filters_1": 24, "batch_size": 128, "optimizer": "sgd"}


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'optuna.db'}"


@pytest.fixture
def trial_storage(address: str) -> TrialStorage:
    """A trial storage, another study's trials before and between its own, that has come to every state."""
    other, trial_storage = TrialStorage(RDBStorage(address), "another"), TrialStorage(RDBStorage(address), "toy")
    assert other.trials() == trial_storage.trials() == []
    results = (
        TrialResult(0, 1, TrialState.COMPLETE, 2, 0.5, seconds=12.5),
        TrialResult(1, 1, TrialState.PRUNED, 2),
        TrialResult(2, 1, TrialState.FAILED, 1, reason=FailReason.DIVERGED),
    )
    for result in results:
        other.add(POINT, DISTRIBUTIONS, state=OptunaState.WAITING)
        begin(trial_storage, result.number)
        trial_storage.close(result)
    begin(trial_storage, 3)
    trial_storage.record_prune(3, 2)
    trial_storage.study.ask()
    trial_storage.study.ask()
    begin(trial_storage, 6)
    trial_storage.requeue(6)
    trial_storage.add(POINT, DISTRIBUTIONS, state=OptunaState.WAITING)
    return trial_storage


def begin(trial_storage: TrialStorage, number: int) -> None:
    trial = trial_storage.add(POINT, DISTRIBUTIONS, {"place": number, "values": {"filters": (1, 2)}})
    assert trial.number == number
    trial_storage.begin_attempt(number, 1, f"run-{number}")
    for epoch, value in enumerate((0.25, float("inf"), 0.75), start=1):
        trial_storage.record_value(number, epoch, value)


def without_times(trials: list[FrozenTrial]) -> list[dict[str, object]]:
    """Leave out the two moments, which the cache takes some microseconds after the database."""
    return [
        {key: value for key, value in vars(trial).items() if key not in ("_datetime_start", "datetime_complete")}
        for trial in trials
    ]


def test_the_cache_equals_the_database_after_every_write(trial_storage: TrialStorage, address: str) -> None:
    stored = RDBStorage(address).get_all_trials(trial_storage.study._study_id)

    assert len(stored) == 8
    assert without_times(trial_storage.trials()) == without_times(stored)
    for cached, trial in zip(trial_storage.trials(), stored, strict=True):
        assert (cached.datetime_start is None) == (trial.datetime_start is None)
        assert (cached.datetime_complete is None) == (trial.datetime_complete is None)


def test_the_cache_reads_what_optuna_reads(trial_storage: TrialStorage, address: str) -> None:
    again = TrialStorage(RDBStorage(address), "toy")

    assert again.trials() == RDBStorage(address).get_all_trials(trial_storage.study._study_id)
    assert [again.trial(number) for number in range(8)] == again.trials()


def test_a_returned_trial_does_not_change(trial_storage: TrialStorage) -> None:
    before = trial_storage.trial(3)

    trial_storage.record_value(3, 4, 0.5)

    assert 4 not in before.intermediate_values
    assert trial_storage.trial(3).intermediate_values[4] == 0.5


def test_a_refused_write_changes_nothing(trial_storage: TrialStorage, address: str) -> None:
    with pytest.raises(UpdateFinishedTrialError):
        trial_storage.record_value(0, 4, 0.5)

    assert 4 not in trial_storage.trial(0).intermediate_values
    assert 4 not in TrialStorage(RDBStorage(address), "toy").trial(0).intermediate_values


@pytest.mark.usefixtures("trial_storage")
def test_trials_share_their_distributions(address: str) -> None:
    first, second, *_ = TrialStorage(RDBStorage(address), "toy").trials()

    assert first.distributions is second.distributions
