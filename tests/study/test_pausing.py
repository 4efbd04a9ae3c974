"""The promises of a study whose pruner pauses trials and goes back to them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.patches import Rectangle

from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.space.space import SearchSpace
from fashion_study.store.checkpoints import Checkpoints
from fashion_study.study.figures import study_figures
from fashion_study.study.proposals import Proposals
from fashion_study.testing.memory import memory_storage
from fashion_study.testing.training import SimulatedOutcome, toy_result
from fashion_study.trial import Precision, TrialState
from tests.support.memory_study import SEED, Study, smoke_with


@pytest.mark.parametrize("slots", [1, 3])
def test_paused_trials_go_on_in_their_run(slots: int) -> None:
    study = Study(trials=27, slots=slots, pruner="asha", space=smoke_with(epochs=8), has_checkpoints=True)

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
    study = Study(trials=6, pruner="asha", space=smoke_with(epochs=8), has_checkpoints=True)
    study.run()
    waited = {record.number for record in study.trial_storage.records() if record.state is TrialState.PAUSED}

    more = study.again(trials=30, tracker=study.runs)
    more.run()

    assert waited & {spec.number for spec in more.executor.submitted}
    assert more.trial_storage.counted() == 30


def test_a_paused_trial_without_a_checkpoint_begins_anew() -> None:
    study = Study(trials=9, pruner="asha", space=smoke_with(epochs=8))

    study.run()

    again = [spec for spec in study.executor.submitted if spec.attempt > 1]
    assert again
    assert {spec.resumes for spec in again} == {0}
    records = {record.number: record for record in study.trial_storage.records()}
    for spec in again:
        # It is not paused again where it was let go on.
        assert records[spec.number].reached > records[spec.number].promoted_at


def test_points_to_try_are_part_of_a_total_of_pausing_trials() -> None:
    study = Study(trials=2, pruner="asha", space=smoke_with(epochs=8), has_checkpoints=True)
    points = [study.space.complete({"learning_rate": rate}) for rate in (2e-3, 3e-3, 4e-3)]
    OptunaEngine(study.trial_storage, study.space, try_points=tuple(points))

    study.run()

    assert study.trial_storage.counted() == 2
    assert {spec.number for spec in study.executor.submitted} == {0, 1}


def test_paused_trials_that_are_ended_do_not_go_on() -> None:
    study = Study(trials=9, pruner="asha", space=smoke_with(epochs=8), has_checkpoints=True)
    proposals = study.run()
    numbers = [record.number for record in study.trial_storage.records() if record.state is TrialState.PAUSED]
    for number in numbers:
        study.trial_storage.pause(number, study.trial_storage.record(number).paused_at, seconds=60.0)
    paused = [study.trial_storage.record(number) for number in numbers]

    assert proposals.end_paused() == len(paused) > 0

    for before in paused:
        after = study.trial_storage.record(before.number)
        assert (after.state, after.curve, after.seconds) == (TrialState.PRUNED, before.curve, before.seconds)
        assert study.runs.runs[after.run_id or ""].status == TrialState.PRUNED.value
    assert study.trial_storage.counted() == 9
    timeline = dict(study_figures(study.trial_storage))["timeline"].axes[0]
    bars = [bar for bar in timeline.patches if isinstance(bar, Rectangle)]
    widths = {bar.get_y() + bar.get_height() / 2: bar.get_width() for bar in bars}
    assert all(widths[record.number] == 0 for record in paused)
    more = study.again(trials=30, tracker=study.runs)
    more.run()
    assert not {record.number for record in paused} & {spec.number for spec in more.executor.submitted}


def test_the_lowest_ranked_paused_trials_make_room_on_the_disk(tmp_path: Path) -> None:
    study = Study(trials=12, pruner="asha", space=smoke_with(epochs=8), has_checkpoints=True)
    study.run()
    paused = [record for record in study.trial_storage.records() if record.state is TrialState.PAUSED]
    kept = Checkpoints(tmp_path, "", None, disk=100 * (len(paused) - 2))
    for record in paused:
        kept.path(record.label).write_bytes(bytes(100))
    lowest = sorted(paused, key=lambda record: (record.paused_at, max(record.curve.values())))[:2]
    engine = OptunaEngine(study.trial_storage, study.space, "random", "asha", SEED)
    proposals = Proposals(engine, study.runs, study.observer, Precision.FLOAT32, 13, kept)

    spec = proposals.next()
    assert spec is not None
    spec = proposals.begin(spec)
    proposals.settle(spec, toy_result(spec, TrialState.PAUSED, 1))

    states = {record.number: record.state for record in study.trial_storage.records()}
    assert {record.number for record in paused if states[record.number] is TrialState.PRUNED} == {
        record.number for record in lowest
    }
    assert {path.name for path in tmp_path.iterdir()} == {
        f"trial-{record.number:03d}.checkpoint" for record in paused if record not in lowest
    }
    assert len([line for line in study.observer.notes if "--checkpoint-disk" in line]) == 2


def test_ended_trials_from_which_others_go_on_make_room_too(tmp_path: Path) -> None:
    study = Study(trials=4, space=smoke_with(epochs=2))
    study.run()
    ranked = sorted(study.trial_storage.records(), key=lambda record: record.objective or 0.0)
    kept = Checkpoints(tmp_path, "", None, disk=250)
    for record in ranked:
        kept.path(record.label).write_bytes(bytes(100))
    engine = OptunaEngine(study.trial_storage, study.space, "random", "none", SEED)
    engine.continues_trials = True
    proposals = Proposals(engine, study.runs, study.observer, Precision.FLOAT32, 5, kept)

    proposals.bound_checkpoints()

    assert study.states() == [TrialState.COMPLETE] * 4
    assert {path.name for path in tmp_path.iterdir()} == {
        f"trial-{record.number:03d}.checkpoint" for record in ranked[2:]
    }
    assert len([line for line in study.observer.notes if "--checkpoint-disk" in line]) == 2


def test_a_study_of_few_points_lets_the_best_go_on_when_it_is_taken_up() -> None:
    narrow = smoke_with(epochs=8).model_dump()
    narrow["parameters"] = {"filters_1": narrow["parameters"]["filters_1"]}
    narrow["baseline"] = {"filters_1": 4}  # The other point is the better one.
    narrow["fixed"] |= {"learning_rate": 1e-3}
    space = SearchSpace.model_validate(narrow)
    stopped = Study(trials=50, pruner="asha", space=space, has_checkpoints=True, epoch_budget=9)
    stopped.run()
    assert stopped.states() == [TrialState.COMPLETE, TrialState.PAUSED]

    taken_up = stopped.again(epoch_budget=None, tracker=stopped.runs)
    proposals = taken_up.run()

    assert proposals.exhausted is not None
    assert taken_up.states() == [TrialState.COMPLETE, TrialState.COMPLETE]


@pytest.mark.parametrize("lost", [range(27), range(1, 27, 3)])
def test_lost_attempts_change_nothing_of_what_a_study_tries(lost: range) -> None:
    never = Study(trials=27, sampler="tpe", pruner="asha", space=smoke_with(epochs=8), has_checkpoints=True)
    outcomes = {(number, attempt): SimulatedOutcome.LOST for number in lost for attempt in (1, 2, 4)}
    often = replace(never, storage=memory_storage(), outcomes=outcomes)

    never.run()
    often.run()

    assert len(often.observer.lost) >= len(lost) / 3
    told = [
        [(each.number, each.state, each.params, each.curve) for each in study.trial_storage.records()]
        for study in (never, often)
    ]
    assert told[0] == told[1]
