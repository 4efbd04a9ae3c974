"""The promises of the ledger: what it is told it keeps, across processes and interruptions."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage

from fashion_study.database_url import DatabaseAddress
from fashion_study.store.postgres import open_storage
from fashion_study.store.trials import MAX_RETURNS, Ledger
from fashion_study.trial import FailReason, TrialResult, TrialState
from tests.support.twins import memory_storage


@pytest.fixture(scope="module", params=["SQLite", "PostgreSQL"])
def storage(request: pytest.FixtureRequest) -> Iterator[RDBStorage]:
    if request.param == "SQLite":
        yield memory_storage()
        return
    postgres = request.getfixturevalue("postgres")
    storage = open_storage(DatabaseAddress(postgres.driver_address(), postgres.passwords["optuna"]))
    yield storage
    storage.engine.dispose()


@pytest.fixture
def ledger(storage: RDBStorage, request: pytest.FixtureRequest) -> Ledger:
    return Ledger(storage, request.node.nodeid)


DISTRIBUTIONS = {"learning_rate": FloatDistribution(0.0, 1.0)}


def begin(ledger: Ledger) -> int:
    """Take the trial that waits, or add one, and begin an attempt, as engine and coordinator do; return its number."""
    trial = ledger.take_waiting() or ledger.add({"learning_rate": len(ledger.trials()) / 8}, DISTRIBUTIONS)
    attempt = int(trial.user_attrs.get("attempt", 0)) + 1
    ledger.begin_attempt(trial.number, attempt, f"run-{trial.number}-{attempt}")
    return trial.number


def completed(number: int, objective: float) -> TrialResult:
    return TrialResult(number, 1, TrialState.COMPLETE, 2, objective, seconds=12.5)


def test_a_new_ledger_is_empty(ledger: Ledger) -> None:
    assert ledger.records() == []
    assert ledger.counted() == 0
    assert ledger.best() is None
    assert ledger.take_waiting() is None
    assert dict(ledger.facts) == {}


def test_a_trial_that_runs_shows_its_attempt_and_its_run_and_does_not_count(ledger: Ledger) -> None:
    number = begin(ledger)

    (record,) = ledger.records()
    assert (record.number, record.state, record.attempt, record.run_id) == (number, TrialState.RUNNING, 1, "run-0-1")
    assert (record.objective, record.reason, record.seconds) == (None, None, None)
    assert record.params.keys() == {"learning_rate"}
    assert ledger.counted() == 0


def test_a_complete_trial_keeps_its_objective_its_curve_and_its_time(ledger: Ledger) -> None:
    number = begin(ledger)
    ledger.record_value(number, 1, 0.25)
    ledger.record_value(number, 2, 0.75)

    ledger.close(completed(number, 0.5))

    (record,) = ledger.records()
    assert (record.state, record.objective, record.curve) == (TrialState.COMPLETE, 0.5, {1: 0.25, 2: 0.75})
    assert record.seconds == 12.5
    assert ledger.counted() == 1


def test_a_pruned_trial_counts_and_has_no_objective(ledger: Ledger) -> None:
    number = begin(ledger)
    ledger.record_value(number, 1, 0.25)

    ledger.close(TrialResult(number, 1, TrialState.PRUNED, 1))

    (record,) = ledger.records()
    assert (record.state, record.objective, record.curve) == (TrialState.PRUNED, None, {1: 0.25})
    assert ledger.counted() == 1
    assert ledger.best() is None


@pytest.mark.parametrize("reason", FailReason)
def test_a_failed_trial_counts_and_keeps_its_reason(reason: FailReason, ledger: Ledger) -> None:
    number = begin(ledger)

    ledger.close(TrialResult(number, 1, TrialState.FAILED, 0, reason=reason))

    (record,) = ledger.records()
    assert (record.state, record.reason, record.objective) == (TrialState.FAILED, reason, None)
    assert ledger.counted() == 1


def test_the_best_trial_has_the_highest_objective_and_on_a_tie_came_first(ledger: Ledger) -> None:
    for objective in (0.5, 0.75, 0.25, 0.75):
        ledger.close(completed(begin(ledger), objective))

    best = ledger.best()

    assert best is not None
    assert (best.number, best.objective) == (1, 0.75)


def test_a_released_trial_waits_under_its_own_number_and_values(ledger: Ledger) -> None:
    number = begin(ledger)
    params = ledger.records()[number].params

    state = ledger.release(number)

    assert state is ledger.records()[number].state is TrialState.WAITING
    assert ledger.counted() == 0
    assert begin(ledger) == number
    (record,) = ledger.records()
    assert (record.state, record.params, record.attempt) == (TrialState.RUNNING, params, 2)
    assert record.run_id == "run-0-2"
    assert ledger.take_waiting() is None


def test_a_trial_is_given_up_after_too_many_returns(ledger: Ledger) -> None:
    states = [ledger.release(begin(ledger)) for _ in range(MAX_RETURNS + 1)]

    assert states == [TrialState.WAITING] * 3 + [TrialState.FAILED]
    (record,) = ledger.records()
    assert (record.state, record.reason, record.attempt) == (TrialState.FAILED, FailReason.INTERRUPTED, 4)
    assert ledger.counted() == 1


def test_a_withdrawn_proposal_was_no_attempt(ledger: Ledger) -> None:
    for _ in range(MAX_RETURNS + 2):
        proposed = ledger.take_waiting() or ledger.add({"learning_rate": 0.5}, DISTRIBUTIONS)
        ledger.withdraw(proposed.number)

    (record,) = ledger.records()
    assert (record.state, record.attempt) == (TrialState.WAITING, 0)


def test_a_later_attempt_replaces_the_values_of_an_earlier_one(ledger: Ledger) -> None:
    number = begin(ledger)
    ledger.record_value(number, 1, 0.25)
    ledger.release(number)
    begin(ledger)

    ledger.record_value(number, 1, 0.5)

    assert ledger.records()[number].curve == {1: 0.5}


def test_what_a_lost_attempt_reached_beyond_the_last_one_is_not_shown(ledger: Ledger) -> None:
    number = begin(ledger)
    for epoch in (1, 2, 3):
        ledger.record_value(number, epoch, 0.25)
    ledger.release(number)
    begin(ledger)
    ledger.record_value(number, 1, 0.5)

    ledger.close(TrialResult(number, 2, TrialState.PRUNED, 1))

    assert ledger.records()[number].curve == {1: 0.5}


def test_an_end_that_a_kill_cut_off_leaves_nothing_to_the_one_that_comes(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = begin(ledger)
    ledger.record_value(number, 1, 0.25)
    with monkeypatch.context() as patch:
        patch.setattr(ledger.study, "tell", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ledger.close(TrialResult(number, 1, TrialState.FAILED, 0, reason=FailReason.TIMEOUT, seconds=9.0))
    (record,) = ledger.records()
    assert (record.state, record.reason, record.seconds, record.curve) == (TrialState.RUNNING, None, None, {1: 0.25})
    ledger.release(number)
    begin(ledger)

    ledger.close(completed(number, 0.5))

    (record,) = ledger.records()
    assert (record.state, record.reason, record.seconds, record.curve) == (TrialState.COMPLETE, None, 12.5, {1: 0.25})


def test_an_enqueued_trial_waits_with_its_values_until_it_is_taken(ledger: Ledger) -> None:
    ledger.enqueue({"learning_rate": 1}, DISTRIBUTIONS)

    (waiting,) = ledger.records()
    taken = ledger.take_waiting()

    assert (waiting.state, waiting.params, waiting.attempt) == (TrialState.WAITING, {"learning_rate": 1.0}, 0)
    assert taken is not None
    assert (taken.number, taken.params) == (0, {"learning_rate": 1.0})
    assert ledger.records()[0].state is TrialState.RUNNING


def test_trials_that_wait_are_taken_by_their_number(ledger: Ledger) -> None:
    numbers = [begin(ledger) for _ in range(3)]
    for number in reversed(numbers):
        ledger.release(number)

    taken = [ledger.take_waiting() for _ in numbers]

    assert [trial.number for trial in taken if trial] == numbers


def test_another_process_reads_what_was_written(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'optuna.db'}"
    first = Ledger(RDBStorage(address), "toy")
    first.remember(identity={"seed": 3}, precision="float32")
    first.close(completed(begin(first), 0.5))
    first.record_value(begin(first), 1, 0.25)

    second = Ledger(RDBStorage(address), "toy")

    assert dict(second.facts) == {"identity": {"seed": 3}, "precision": "float32"}
    assert second.records() == first.records()
    assert Ledger(RDBStorage(address), "another").records() == []
