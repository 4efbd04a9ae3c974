"""The promises of the trial storage: what is recorded stays, across processes and interruptions."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from fashion_study.database_url import DatabaseUrl
from fashion_study.store import trials
from fashion_study.store.postgres import open_storage
from fashion_study.store.trials import MAX_RETRIES, TrialRecord, TrialStorage
from fashion_study.testing.memory import memory_storage
from fashion_study.trial import FailReason, TrialResult, TrialState


@pytest.fixture(scope="module", params=["SQLite", "PostgreSQL"])
def storage(request: pytest.FixtureRequest) -> Iterator[RDBStorage]:
    if request.param == "SQLite":
        yield memory_storage()
        return
    postgres = request.getfixturevalue("postgres")
    storage = open_storage(DatabaseUrl(postgres.driver_address(), postgres.passwords["optuna"]))
    yield storage
    storage.engine.dispose()


@pytest.fixture
def trial_storage(storage: RDBStorage, request: pytest.FixtureRequest) -> TrialStorage:
    return TrialStorage(storage, request.node.nodeid)


DISTRIBUTIONS = {"learning_rate": FloatDistribution(0.0, 1.0)}


def begin(trial_storage: TrialStorage) -> int:
    """Take the trial that waits, or add one, and begin an attempt, as engine and coordinator do; return its number."""
    trial = trial_storage.claim_waiting() or trial_storage.add(
        {"learning_rate": len(trial_storage.trials()) / 8}, DISTRIBUTIONS
    )
    attempt = int(trial.user_attrs.get("attempt", 0)) + 1
    trial_storage.begin_attempt(trial.number, attempt, f"run-{trial.number}-{attempt}")
    return trial.number


def completed(number: int, objective: float) -> TrialResult:
    return TrialResult(number, 1, TrialState.COMPLETE, 2, objective, seconds=12.5)


def test_a_new_trial_storage_is_empty(trial_storage: TrialStorage) -> None:
    assert trial_storage.records() == []
    assert trial_storage.counted() == 0
    assert trial_storage.best() is None
    assert trial_storage.claim_waiting() is None
    assert dict(trial_storage.attrs) == {}


def test_a_running_trial_has_attempt_and_run_and_does_not_count(trial_storage: TrialStorage) -> None:
    number = begin(trial_storage)

    (record,) = trial_storage.records()
    assert (record.number, record.state, record.attempt, record.run_id) == (number, TrialState.RUNNING, 1, "run-0-1")
    assert (record.objective, record.reason, record.seconds) == (None, None, None)
    assert record.params.keys() == {"learning_rate"}
    assert trial_storage.counted() == 0


def test_a_complete_trial_keeps_objective_curve_and_time(trial_storage: TrialStorage) -> None:
    number = begin(trial_storage)
    trial_storage.record_value(number, 1, 0.25)
    trial_storage.record_value(number, 2, 0.75)

    trial_storage.close(completed(number, 0.5))

    (record,) = trial_storage.records()
    assert (record.state, record.objective, record.curve) == (TrialState.COMPLETE, 0.5, {1: 0.25, 2: 0.75})
    assert record.seconds == 12.5
    assert trial_storage.counted() == 1


def test_a_pruned_trial_counts_and_has_no_objective(trial_storage: TrialStorage) -> None:
    number = begin(trial_storage)
    trial_storage.record_value(number, 1, 0.25)

    trial_storage.close(TrialResult(number, 1, TrialState.PRUNED, 1))

    (record,) = trial_storage.records()
    assert (record.state, record.objective, record.curve) == (TrialState.PRUNED, None, {1: 0.25})
    assert trial_storage.counted() == 1
    assert trial_storage.best() is None


@pytest.mark.parametrize("reason", FailReason)
def test_a_failed_trial_counts_and_keeps_its_reason(reason: FailReason, trial_storage: TrialStorage) -> None:
    number = begin(trial_storage)

    trial_storage.close(TrialResult(number, 1, TrialState.FAILED, 0, reason=reason, message="It\nbroke."))

    (record,) = trial_storage.records()
    assert record.cause == "It broke"
    assert (record.state, record.reason, record.objective) == (TrialState.FAILED, reason, None)
    assert trial_storage.counted() == 1


def test_the_best_trial_is_the_highest_and_the_first_on_a_tie(trial_storage: TrialStorage) -> None:
    for objective in (0.5, 0.75, 0.25, 0.75):
        trial_storage.close(completed(begin(trial_storage), objective))

    best = trial_storage.best()

    assert best is not None
    assert (best.number, best.objective) == (1, 0.75)


def test_a_requeued_trial_keeps_its_number_and_values(trial_storage: TrialStorage) -> None:
    number = begin(trial_storage)
    params = trial_storage.records()[number].params

    state = trial_storage.requeue(number)

    assert state is trial_storage.records()[number].state is TrialState.WAITING
    assert trial_storage.counted() == 0
    assert begin(trial_storage) == number
    (record,) = trial_storage.records()
    assert (record.state, record.params, record.attempt) == (TrialState.RUNNING, params, 2)
    assert record.run_id == "run-0-2"
    assert trial_storage.claim_waiting() is None


def test_a_trial_fails_after_its_retries(trial_storage: TrialStorage) -> None:
    cause = "signal SIGSEGV"
    states = [trial_storage.requeue(begin(trial_storage), cause=cause) for _ in range(MAX_RETRIES + 1)]

    assert states == [TrialState.WAITING] * 3 + [TrialState.FAILED]
    (record,) = trial_storage.records()
    assert (record.state, record.reason, record.attempt) == (TrialState.FAILED, FailReason.INTERRUPTED, 4)
    assert record.cause == cause
    assert trial_storage.counted() == 1


def test_an_unstarted_trial_was_no_attempt(trial_storage: TrialStorage) -> None:
    for _ in range(MAX_RETRIES + 2):
        proposed = trial_storage.claim_waiting() or trial_storage.add({"learning_rate": 0.5}, DISTRIBUTIONS)
        trial_storage.requeue_unstarted(proposed.number)

    (record,) = trial_storage.records()
    assert (record.state, record.attempt) == (TrialState.WAITING, 0)


def test_a_later_attempt_replaces_the_values_of_an_earlier_one(trial_storage: TrialStorage) -> None:
    number = begin(trial_storage)
    trial_storage.record_value(number, 1, 0.25)
    trial_storage.requeue(number)
    begin(trial_storage)

    trial_storage.record_value(number, 1, 0.5)

    assert trial_storage.records()[number].curve == {1: 0.5}


def test_epochs_of_a_lost_attempt_beyond_the_last_are_left_out(trial_storage: TrialStorage) -> None:
    number = begin(trial_storage)
    for epoch in (1, 2, 3):
        trial_storage.record_value(number, epoch, 0.25)
    trial_storage.requeue(number)
    begin(trial_storage)
    trial_storage.record_value(number, 1, 0.5)

    trial_storage.close(TrialResult(number, 2, TrialState.PRUNED, 1))

    assert trial_storage.records()[number].curve == {1: 0.5}


def test_an_interrupted_end_leaves_nothing_to_the_next_one(
    trial_storage: TrialStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = begin(trial_storage)
    trial_storage.record_value(number, 1, 0.25)
    with monkeypatch.context() as patch:
        patch.setattr(trial_storage, "_set_state", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trial_storage.close(TrialResult(number, 1, TrialState.FAILED, 0, reason=FailReason.TIMEOUT, seconds=9.0))
    (record,) = trial_storage.records()
    assert (record.state, record.reason, record.seconds, record.curve) == (TrialState.RUNNING, None, None, {1: 0.25})
    trial_storage.requeue(number)
    begin(trial_storage)

    trial_storage.close(completed(number, 0.5))

    (record,) = trial_storage.records()
    assert (record.state, record.reason, record.seconds, record.curve) == (TrialState.COMPLETE, None, 12.5, {1: 0.25})


def test_a_waiting_trial_waits_until_it_is_claimed(trial_storage: TrialStorage) -> None:
    trial_storage.add({"learning_rate": 1}, DISTRIBUTIONS, state=OptunaState.WAITING)

    (waiting,) = trial_storage.records()
    taken = trial_storage.claim_waiting()

    assert (waiting.state, waiting.params, waiting.attempt) == (TrialState.WAITING, {"learning_rate": 1.0}, 0)
    assert taken is not None
    assert (taken.number, taken.params) == (0, {"learning_rate": 1.0})
    assert trial_storage.records()[0].state is TrialState.RUNNING


def test_waiting_trials_are_claimed_by_their_number(trial_storage: TrialStorage) -> None:
    numbers = [begin(trial_storage) for _ in range(3)]
    for number in reversed(numbers):
        trial_storage.requeue(number)

    taken = [trial_storage.claim_waiting() for _ in numbers]

    assert [trial.number for trial in taken if trial] == numbers


def test_another_process_reads_what_was_written(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'optuna.db'}"
    first = TrialStorage(RDBStorage(address), "toy")
    first.set_attrs(identity={"seed": 3}, precision="float32")
    first.close(completed(begin(first), 0.5))
    first.record_value(begin(first), 1, 0.25)

    second = TrialStorage(RDBStorage(address), "toy")

    assert dict(second.attrs) == {"identity": {"seed": 3}, "precision": "float32"}
    assert second.records() == first.records()
    assert TrialStorage(RDBStorage(address), "another").records() == []


def test_an_attempt_that_left_a_checkpoint_uses_up_no_retry(trial_storage: TrialStorage) -> None:
    for reached in range(1, 2 * MAX_RETRIES):
        number = begin(trial_storage)
        trial_storage.begin_attempt(number, reached, "run", resumes=reached - 1)
        assert trial_storage.requeue(number, reached) is TrialState.WAITING

    states = []
    for _ in range(MAX_RETRIES + 1):
        attempt = trial_storage.records()[0].attempt + 1
        trial_storage.begin_attempt(begin(trial_storage), attempt, "run", resumes=reached)
        states.append(trial_storage.requeue(number, reached))

    assert states == [TrialState.WAITING] * MAX_RETRIES + [TrialState.FAILED]


def test_a_paused_trial_counts_and_goes_on_when_it_is_promoted(trial_storage: TrialStorage) -> None:
    number = begin(trial_storage)
    trial_storage.record_value(number, 1, 0.5)

    trial_storage.pause(number, 1)

    (record,) = trial_storage.records()
    assert (record.state, record.reached, record.value) == (TrialState.PAUSED, 1, 0.5)
    assert (trial_storage.counted(), trial_storage.ended()) == (1, 0)
    assert trial_storage.claim_waiting() is None

    trial_storage.promote(number, 1)

    (record,) = trial_storage.records()
    assert (record.state, record.promoted_at) == (TrialState.RUNNING, 1)
    assert trial_storage.counted() == 0

    # No worker has begun it: it is as before.
    trial_storage.requeue_unstarted(number)
    assert trial_storage.records()[0].state is TrialState.PAUSED

    trial_storage.promote(number, 1)
    trial_storage.begin_attempt(number, 2, "run", resumes=1)
    trial_storage.requeue(number)
    assert trial_storage.records()[0].state is TrialState.WAITING


def test_the_seconds_of_a_paused_trial_add_up(trial_storage: TrialStorage) -> None:
    number = begin(trial_storage)
    trial_storage.pause(number, 1, seconds=2.5)
    assert trial_storage.records()[0].seconds == 2.5
    trial_storage.promote(number, 1)
    trial_storage.pause(number, 3, seconds=4.0)
    trial_storage.promote(number, 3)

    trial_storage.close(completed(number, 0.75))

    assert trial_storage.records()[0].seconds == 2.5 + 4.0 + 12.5


def test_only_trials_that_have_changed_are_looked_at_again(
    trial_storage: TrialStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in range(9):
        begun = trial_storage.add({"learning_rate": value / 10}, DISTRIBUTIONS).number
        trial_storage.close(TrialResult(begun, 1, TrialState.COMPLETE, 1, value / 10))
    ranked = trial_storage.ranked(lambda record: (record.objective or 0.0, record.number))
    assert trial_storage.counted() == trial_storage.ended() == 9
    looked_at = set()

    def look_at(trial: FrozenTrial) -> TrialRecord:
        looked_at.add(trial.number)
        return record_of(trial)

    record_of = trials._record
    monkeypatch.setattr(trials, "_record", look_at)

    number = trial_storage.add({"learning_rate": 0.95}, DISTRIBUTIONS).number
    trial_storage.close(TrialResult(number, 1, TrialState.COMPLETE, 1, 0.95))
    best = trial_storage.best()

    assert trial_storage.claim_waiting() is None
    assert trial_storage.counted() == trial_storage.ended() == 10
    assert best is not None
    assert ranked()[-1] == (0.95, best.number) == (0.95, number)
    assert looked_at == {number}
