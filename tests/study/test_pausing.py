"""The promises of a study whose pruner pauses trials and goes back to them."""

from collections import Counter

import pytest

from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.trial import TrialState
from tests.support.memory_study import Study, smoke_with


@pytest.mark.parametrize("slots", [1, 3])
def test_paused_trials_go_on_in_their_run(slots: int) -> None:
    study = Study(trials=27, slots=slots, pruner="asha", space=smoke_with(epochs=6), has_checkpoints=True)

    study.run()

    records = study.trial_storage.records()
    states = Counter(record.state for record in records)
    assert len(records) == states[TrialState.COMPLETE] + states[TrialState.PAUSED] == 27
    assert states[TrialState.COMPLETE] >= 2
    assert {record.reached for record in records if record.state is TrialState.PAUSED} == {1, 3}
    went_on = [spec for spec in study.executor.submitted if spec.resumes]
    assert went_on
    for spec in went_on:
        assert spec.run_id == f"run-{spec.number}-1"
        assert spec.resumes in (1, 3)
    assert len(study.runs.runs) == 27
    for record in records:
        run = study.runs.runs[record.run_id or ""]
        assert [epoch.epoch for epoch in run.epochs] == [*record.curve] == [*range(1, record.reached + 1)]
        assert run.status == record.state.value
    assert study.trial_storage.counted() == 27


def test_a_higher_total_lets_paused_trials_go_on() -> None:
    study = Study(trials=6, pruner="asha", space=smoke_with(epochs=6), has_checkpoints=True)
    study.run()
    waited = {record.number for record in study.trial_storage.records() if record.state is TrialState.PAUSED}

    more = study.again(trials=30, tracker=study.runs)
    more.run()

    assert waited & {spec.number for spec in more.executor.submitted}
    assert more.trial_storage.counted() == 30


def test_a_paused_trial_without_a_checkpoint_begins_anew() -> None:
    study = Study(trials=9, pruner="asha", space=smoke_with(epochs=6))

    study.run()

    again = [spec for spec in study.executor.submitted if spec.attempt > 1]
    assert again
    assert {spec.resumes for spec in again} == {0}
    records = {record.number: record for record in study.trial_storage.records()}
    for spec in again:
        # It is not paused again where it was let go on.
        assert records[spec.number].reached > records[spec.number].promoted_at


def test_points_to_try_are_part_of_a_total_of_pausing_trials() -> None:
    study = Study(trials=2, pruner="asha", space=smoke_with(epochs=6), has_checkpoints=True)
    points = [study.space.complete({"learning_rate": rate}) for rate in (2e-3, 3e-3, 4e-3)]
    OptunaEngine(study.trial_storage, study.space, try_points=tuple(points))

    study.run()

    assert study.trial_storage.counted() == 2
    assert {spec.number for spec in study.executor.submitted} == {0, 1}
