"""The promises of the study's loop, kept with the real trial storage and engine, with doubles of all that is slow."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fashion_study.config import SamplerName
from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.errors import StoreError, StudyError
from fashion_study.executors.executor import Event
from fashion_study.store.trials import MAX_RETRIES
from fashion_study.study import loop as loop_module
from fashion_study.testing.memory import (
    MemoryExecutor,
    MemoryTracker,
    memory_storage,
)
from fashion_study.testing.training import Key, SimulatedOutcome, toy_accuracy, toy_report, toy_result
from fashion_study.trial import (
    FailReason,
    TrialResult,
    TrialSpec,
    TrialState,
    trial_seed,
)
from tests.support.executors import IntermittentExecutor, StoreFailureExecutor
from tests.support.memory_study import SEED, SMOKE, Study, few_points, interrupted_after, smoke_with


class PruneEverything(OptunaEngine):
    """Ask for an end at every report."""

    def report(self, number: int, epoch: int, value: float) -> bool:
        super().report(number, epoch, value)
        return True


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_exactly_as_many_trials_are_run_as_asked_for(slots: int) -> None:
    study = Study(trials=6, slots=slots)

    study.run()

    assert study.states() == [TrialState.COMPLETE] * 6
    assert len(study.executor.submitted) == 6


def test_pruned_and_failed_trials_count() -> None:
    outcomes = {
        (1, 1): SimulatedOutcome.DIVERGED,
        (3, 1): SimulatedOutcome.ERROR,
        (4, 1): SimulatedOutcome.TIMEOUT,
        (5, 1): SimulatedOutcome.OOM,
    }
    study = Study(trials=7, outcomes=outcomes)

    study.run()

    records = study.trial_storage.records()
    assert len(records) == study.trial_storage.counted() == 7
    failed = [FailReason.ERROR, FailReason.TIMEOUT, FailReason.OOM]
    assert [record.reason for record in records] == [None, FailReason.DIVERGED, None, *failed, None]


def test_every_slot_is_used_and_none_twice() -> None:
    study = Study(trials=9, slots=3)

    study.run()

    assert study.executor.most_at_once == 3


def test_a_study_that_has_its_trials_already_starts_nothing() -> None:
    study = Study(trials=3)
    study.run()

    again = study.again()
    again.run()

    assert again.executor.submitted == []
    assert len(again.trial_storage.records()) == 3


def test_a_higher_total_adds_the_difference() -> None:
    study = Study(trials=3)
    study.run()

    more = study.again(trials=5)
    more.run()

    assert [spec.number for spec in more.executor.submitted] == [3, 4]
    assert more.trial_storage.counted() == 5


def test_a_worker_gets_what_space_and_trial_storage_say() -> None:
    study = Study(trials=3)

    study.run()

    for spec, record in zip(study.executor.submitted, study.trial_storage.records(), strict=True):
        assert spec.hyperparameters == SMOKE.hyperparameters(record.params)
        assert spec.seed == trial_seed(SEED, spec.number)
        assert spec.run_id == record.run_id
        assert study.runs.runs[spec.run_id].params == spec.hyperparameters.model_dump()
        assert study.runs.runs[spec.run_id].tags == {"seed": str(spec.seed), "precision": "float32"}


def test_every_epoch_reaches_run_trial_storage_and_observer() -> None:
    study = Study(trials=4, slots=2)

    study.run()

    for spec, record in zip(study.executor.submitted, study.trial_storage.records(), strict=True):
        params = spec.hyperparameters
        epochs = range(1, params.epochs + 1)
        assert study.runs.runs[spec.run_id].epochs == [toy_report(spec, epoch) for epoch in epochs]
        assert record.curve == {epoch: pytest.approx(toy_accuracy(params, epoch)) for epoch in epochs}
        assert [event for event in study.observer.epochs if event[0] == spec.number] == [
            (spec.number, 1, epoch) for epoch in epochs
        ]
        assert record.objective == pytest.approx(toy_accuracy(params, params.epochs))


def test_the_best_so_far_only_rises_and_goes_on_after_a_resume() -> None:
    study = Study(trials=4)
    study.run()
    more = study.again(trials=12)
    more.run()

    steps = study.runs.best + more.runs.best
    assert [value for _, value in steps] == sorted({value for _, value in steps})
    best = more.trial_storage.best()
    assert best is not None
    assert steps[-1][1] == best.objective
    assert [counted for counted, _ in steps] == sorted({counted for counted, _ in steps})
    assert more.observer.closed[-1][2] == (best.number, best.objective)


def test_reports_are_answered_before_anything_is_written() -> None:
    study = Study(trials=6, slots=3)

    study.run()

    answers = [entry for entry in study.journal if entry.startswith("answer")]
    assert len(answers) == study.executor.epochs > 6
    for answer in answers:
        assert study.journal.index(answer) < study.journal.index(answer.replace("answer", "log"))


def test_a_result_is_recorded_before_its_worker_is_busy_again() -> None:
    study = Study(trials=3)

    study.run()

    for number in (0, 1):
        recorded, closed = (study.journal.index(f"{what} {number}/1") for what in ("record", "close"))
        assert recorded < study.journal.index(f"submit {number + 1}/1") < closed


def test_runs_are_closed_before_the_trial_storage_is_told() -> None:
    states: list[TrialState] = []

    class Watching(MemoryTracker):
        def close_trial(self, spec: TrialSpec, result: TrialResult) -> None:
            states.append(study.trial_storage.records()[spec.number].state)
            super().close_trial(spec, result)

    study = Study(trials=3, outcomes={(1, 1): SimulatedOutcome.ERROR}, tracker=Watching())

    study.run()

    assert states == [TrialState.RUNNING] * 3
    assert TrialState.RUNNING not in study.states()


def test_hopeless_trials_are_pruned_and_the_baseline_never() -> None:
    study = Study(trials=15, pruner="successive-halving", space=smoke_with(epochs=4))

    study.run()

    assert study.states()[0] is TrialState.COMPLETE
    pruned = [record for record in study.trial_storage.records() if record.state is TrialState.PRUNED]
    assert pruned
    for record in pruned:
        run = study.runs.runs[record.run_id or ""]
        assert run.result is not None
        assert run.result.epochs_run == len(run.epochs) == len(record.curve) < 4
        assert run.status == "pruned"


def test_a_prune_decision_ends_a_trial_there() -> None:
    study = Study(trials=3, space=smoke_with(epochs=4), engine=PruneEverything)

    study.run()

    assert study.states() == [TrialState.PRUNED] * 3
    assert study.executor.epochs == 3


def test_a_prune_decision_after_the_last_epoch_comes_too_late() -> None:
    study = Study(trials=3, space=smoke_with(epochs=1), engine=PruneEverything)

    study.run()

    assert study.states() == [TrialState.COMPLETE] * 3


def test_after_the_deadline_nothing_starts_and_what_runs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(trials=9, slots=2, space=smoke_with(epochs=4), deadline=10)
    clock = SimpleNamespace(monotonic=lambda: study.executor.epochs)
    monkeypatch.setattr(loop_module, "time", clock)

    study.run()

    # Eight epochs end the first two trials; the deadline strikes within the next two.
    assert study.states()[:4] == [TrialState.COMPLETE] * 4
    assert len(study.executor.submitted) == 4
    assert study.states()[4:] == [TrialState.WAITING]
    assert study.trial_storage.records()[4].attempt == 0


def test_a_hard_deadline_is_kept_and_what_was_trained_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(trials=3, slots=1, space=smoke_with(epochs=4), deadline=3.25, is_hard=True, has_checkpoints=True)
    # A clock on which every epoch takes as long as its report says.
    clock = SimpleNamespace(monotonic=lambda: study.executor.epochs * 0.5)
    monkeypatch.setattr(loop_module, "time", clock)

    study.run()

    # The fifth and sixth epoch are the second trial's; a third one of it would end too late.
    assert study.executor.epochs == 6
    assert study.states()[:2] == [TrialState.COMPLETE, TrialState.WAITING]
    assert study.observer.lost == [((1, 1), "the time of --budget is over", TrialState.WAITING)]
    run = study.runs.runs[study.trial_storage.record(1).run_id or ""]
    assert run.status == "interrupted"
    trained = len(run.epochs)

    # However often the time was not enough for an epoch, the trial is not given up.
    for _ in range(5):
        short = study.again(deadline=0.4, tracker=study.runs)
        monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda of=short: of.executor.epochs * 0.5))
        short.run()
    assert study.states()[1] is TrialState.WAITING
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: 0.0))

    later = study.again(deadline=math.inf, tracker=study.runs)
    later.run()
    assert later.states() == [TrialState.COMPLETE] * 3
    assert [spec.resumes for spec in later.executor.submitted if spec.number == 1] == [trained]


def test_an_interruption_requeues_trials_and_ends_their_runs() -> None:
    study = Study(trials=9, slots=2, space=smoke_with(epochs=4))

    study.run(interrupted_after(study, 11))

    assert study.states() == [TrialState.COMPLETE] * 2 + [TrialState.WAITING] * 3
    assert study.executor.is_stopped
    for record in study.trial_storage.records()[2:4]:
        run = study.runs.runs[record.run_id or ""]
        assert (run.status, run.cause) == ("interrupted", "the study was stopped")
        assert run.epochs
    assert study.observer.lost == [
        ((2, 1), "the study was stopped", TrialState.WAITING),
        ((3, 1), "the study was stopped", TrialState.WAITING),
    ]


def test_a_proposal_not_begun_is_requeued_without_an_attempt() -> None:
    study = Study(trials=9, space=smoke_with(epochs=4))

    study.run(interrupted_after(study, 2))

    begun, withdrawn = study.trial_storage.records()
    assert (begun.state, begun.attempt) == (TrialState.WAITING, 1)
    assert (withdrawn.state, withdrawn.attempt, withdrawn.run_id) == (TrialState.WAITING, 0, None)
    assert list(study.runs.runs) == [begun.run_id]


def test_a_result_that_came_before_the_interruption_is_kept() -> None:
    study = Study(trials=9, space=smoke_with(epochs=1))

    # The first trial's result arrives with the step after its only epoch.
    study.run(lambda: any(entry == "submit 1/1" for entry in study.journal))

    assert study.states()[0] is TrialState.COMPLETE
    assert study.runs.runs["run-0-1"].status == "complete"


def evidence(study: Study) -> list[tuple[object, ...]]:
    return [(record.params, record.state, record.curve) for record in study.trial_storage.records()]


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_interruptions_change_no_trial_of_a_study_of_one_worker(sampler: SamplerName) -> None:
    # Past its first ten trials TPE learns from what came before.
    whole = Study(trials=14, sampler=sampler, pruner="hyperband")
    whole.run()

    broken = replace(whole, storage=memory_storage())
    for epochs in (1, 12, 5):
        broken.run(interrupted_after(broken, epochs))
        broken = broken.again(tracker=broken.runs)
    broken.run()

    assert evidence(broken) == evidence(whole)
    assert [run.superseded_by is None for run in broken.runs.runs.values()].count(False) == 3


def test_a_lost_attempt_is_tried_again_as_the_same_trial() -> None:
    study = Study(trials=4, outcomes={(2, 1): SimulatedOutcome.LOST})

    study.run()

    assert study.states() == [TrialState.COMPLETE] * 4
    first, second = (spec for spec in study.executor.submitted if spec.number == 2)
    assert (first.attempt, second.attempt) == (1, 2)
    assert (first.hyperparameters, first.seed) == (second.hyperparameters, second.seed)
    assert study.runs.runs[first.run_id].status == "interrupted"
    assert study.runs.runs[first.run_id].superseded_by == second.run_id
    assert study.runs.runs[second.run_id].superseded_by is None
    assert study.trial_storage.records()[2].run_id == second.run_id
    assert study.observer.lost == [((2, 1), "signal SIGKILL", TrialState.WAITING)]


def test_a_trial_that_is_lost_every_time_is_given_up_and_counts() -> None:
    outcomes = {(1, attempt): SimulatedOutcome.LOST for attempt in range(1, 9)}
    study = Study(trials=3, outcomes=outcomes)

    study.run()

    assert study.states() == [TrialState.COMPLETE, TrialState.FAILED, TrialState.COMPLETE]
    given_up = study.trial_storage.records()[1]
    assert given_up.reason is FailReason.INTERRUPTED
    assert given_up.attempt == MAX_RETRIES + 1 == 4
    assert [state for _, _, state in study.observer.lost] == [TrialState.WAITING] * 3 + [TrialState.FAILED]
    runs = [run for run in study.runs.runs.values() if run.number == 1]
    assert [run.status for run in runs] == ["interrupted"] * 3 + ["failed"]
    assert study.trial_storage.counted() == 3


def test_interruptions_by_the_user_count_as_attempts_too() -> None:
    study = Study(trials=2)
    for _ in range(MAX_RETRIES + 1):
        study = study.again(tracker=study.runs)
        study.run(interrupted_after(study, 1))

    assert study.states()[0] is TrialState.FAILED
    assert study.trial_storage.records()[0].reason is FailReason.INTERRUPTED


def with_workers_that_come_and_go(study: Study) -> Study:
    study.executor = IntermittentExecutor(study.slots, study.outcomes, study.journal)
    return study


def test_a_study_waits_for_workers_that_come_and_go() -> None:
    study = with_workers_that_come_and_go(
        Study(trials=3, outcomes={(1, 1): SimulatedOutcome.LOST, (2, 1): SimulatedOutcome.LOST})
    )

    study.run()

    assert study.states() == [TrialState.COMPLETE] * 3
    assert [key for key, _, _ in study.observer.lost] == [(1, 1), (2, 1)]


def test_without_a_worker_a_finished_study_ends() -> None:
    study = Study(trials=2)
    study.run()
    again = with_workers_that_come_and_go(study.again())

    again.run()

    assert again.executor.slots == 0
    assert again.states() == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize("is_late", [False, True], ids=["interrupted", "after its deadline"])
def test_without_a_worker_a_study_can_be_stopped(is_late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    study = with_workers_that_come_and_go(Study(trials=2, deadline=-3.5 if is_late else math.inf))
    # A second passes with each wait.
    clock = SimpleNamespace(monotonic=lambda: -study.executor.absent)  # type: ignore[attr-defined]
    monkeypatch.setattr(loop_module, "time", clock)

    study.run(lambda: not is_late and study.executor.absent == 2)  # type: ignore[attr-defined]

    assert study.executor.slots == 0
    (withdrawn,) = study.trial_storage.records()
    assert (withdrawn.state, withdrawn.attempt, withdrawn.run_id) == (TrialState.WAITING, 0, None)


def with_failing_store(study: Study) -> Study:
    study.executor = StoreFailureExecutor(study.slots, study.outcomes, study.journal)
    return study


def test_a_store_that_fails_for_a_moment_costs_no_attempt() -> None:
    outcomes = {(number, 1): SimulatedOutcome.LOST for number in (0, 2)}
    study = with_failing_store(Study(trials=4, outcomes=outcomes))

    study.run()

    assert study.states() == [TrialState.COMPLETE] * 4
    assert [record.counted_attempts for record in study.trial_storage.records()] == [1] * 4


def test_a_store_that_has_taken_a_checkpoint_works_again() -> None:
    # Those that go on after their pause, one after the other.
    outcomes = {(number, 2): SimulatedOutcome.LOST for number in range(1, 9)}
    space = smoke_with(epochs=8)
    study = with_failing_store(Study(trials=9, outcomes=outcomes, pruner="asha", space=space, has_checkpoints=True))

    study.run()

    lost = [spec.number for spec in study.executor.submitted if spec.attempt == 2]
    assert len(lost) >= 2
    assert study.journal.index(f"record {lost[0]}/3") < study.journal.index(f"submit {lost[1]}/2")
    assert study.trial_storage.counted() == 9


@pytest.mark.parametrize(
    ("slots", "lost"),
    [
        pytest.param(1, [(0, 1), (0, 2)], id="the same trial twice"),
        pytest.param(2, [(0, 1), (1, 1)], id="two trials in a row"),
        pytest.param(2, [(1, 1), (1, 2)], id="a trial again after another one's result"),
    ],
)
def test_a_store_that_keeps_failing_gives_no_trial_up(slots: int, lost: list[Key]) -> None:
    study = Study(
        trials=2, slots=slots, outcomes=dict.fromkeys(lost, SimulatedOutcome.LOST), space=smoke_with(epochs=1)
    )
    for _ in range(MAX_RETRIES + 2):
        with pytest.raises(StoreError, match=r"signal SIGKILL.*the same command goes on"):
            with_failing_store(study).run()
        assert set(study.states()) <= {TrialState.WAITING, TrialState.COMPLETE}
        begun = {record.number: record.attempt for record in study.trial_storage.records()}
        again = {(number, begun[number] + later): SimulatedOutcome.LOST for number, _ in lost for later in (1, 2)}
        study = study.again(tracker=study.runs, outcomes=again)

    study.again(tracker=study.runs).run()

    assert set(study.states()) == {TrialState.COMPLETE}


def test_a_result_beside_the_loss_that_ends_the_study_is_kept() -> None:
    outcomes = {(number, 1): SimulatedOutcome.LOST for number in (0, 1)}
    study = with_failing_store(Study(trials=3, slots=3, outcomes=outcomes, space=smoke_with(epochs=1)))

    with pytest.raises(StoreError):
        study.run()

    assert study.states() == [TrialState.WAITING, TrialState.WAITING, TrialState.COMPLETE]


def test_workers_that_cannot_start_cost_no_trial_an_attempt() -> None:
    class Broken(MemoryExecutor):
        def wait(self, timeout: float) -> list[Event]:
            raise StudyError(f"A worker process ended before it was ready, within {timeout} s.")

    study = Study(trials=2, slots=2)
    for _ in range(MAX_RETRIES + 2):
        study.executor = Broken(2)
        with pytest.raises(StudyError, match="before it was ready"):
            study.run()
        assert set(study.states()) == {TrialState.WAITING}
        assert {run.status for run in study.runs.runs.values()} == {"interrupted"}
        study = study.again(tracker=study.runs)

    study.run()

    assert study.states() == [TrialState.COMPLETE] * 2


def test_what_a_superseded_attempt_sends_is_ignored() -> None:
    study = Study(trials=2, outcomes={(0, 1): SimulatedOutcome.LOST}, space=smoke_with(epochs=3))

    def send_late() -> bool:
        if len(study.executor.submitted) >= 2 and not study.executor.late:
            old = study.executor.submitted[0]
            study.executor.late = [toy_report(old, 3), toy_result(old, TrialState.PRUNED, 3)]
        return False

    study.run(send_late)

    assert study.states() == [TrialState.COMPLETE] * 2
    assert [len(run.epochs) for run in study.runs.runs.values()] == [1, 3, 3]
    assert study.runs.runs["run-0-1"].status == "interrupted"


def test_an_exhausted_grid_ends_the_study_and_says_why() -> None:
    study = Study(trials=50, slots=3, sampler="grid")

    proposals = study.run()

    assert proposals.exhausted is not None
    assert "grid" in proposals.exhausted
    # The baseline has two epochs, which the grid has not.
    assert study.trial_storage.counted() == len(study.trial_storage.records()) == 1 + 2 * 2 * 2


def test_the_last_point_of_a_grid_is_tried_again_when_it_is_lost() -> None:
    study = Study(trials=50, sampler="grid", outcomes={(8, 1): SimulatedOutcome.LOST})

    proposals = study.run()

    assert study.states() == [TrialState.COMPLETE] * 9
    assert proposals.exhausted is not None


def test_a_small_space_ends_the_study_when_each_point_was_tried() -> None:
    study = Study(
        trials=50, slots=3, space=few_points(), outcomes={(2, 1): SimulatedOutcome.LOST, (4, 1): SimulatedOutcome.ERROR}
    )

    proposals = study.run()

    assert proposals.exhausted is not None
    assert "all 6 points" in proposals.exhausted
    tried = [tuple(record.params.items()) for record in study.trial_storage.records()]
    assert len(tried) == len(set(tried)) == study.trial_storage.counted() == 6
    assert sorted(spec.number for spec in study.executor.submitted) == [0, 1, 2, 2, 3, 4, 5]

    again = study.again()
    assert again.run().exhausted is not None
    assert again.executor.submitted == []


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_interruptions_change_no_trial_of_a_small_space(
    sampler: SamplerName,
) -> None:
    whole = Study(trials=50, space=few_points(), sampler=sampler)
    whole.run()

    broken = replace(whole, storage=memory_storage())
    for epochs in (1, 3, 2):
        broken.run(interrupted_after(broken, epochs))
        broken = broken.again(tracker=broken.runs)
    broken.run()

    assert evidence(broken) == evidence(whole)
    assert broken.trial_storage.counted() == 6


def test_what_comes_after_a_trial_sees_it_written_down() -> None:
    seen: list[tuple[int, int]] = []
    study = Study(trials=3, outcomes={(1, 1): SimulatedOutcome.ERROR})

    study.run(after_result=lambda: seen.append((study.trial_storage.counted(), len(study.observer.closed))))

    assert seen == [(1, 1), (2, 2), (3, 3)]


def test_an_observer_sees_attempts_begin_and_trials_end() -> None:
    study = Study(trials=4, outcomes={(1, 1): SimulatedOutcome.LOST, (2, 1): SimulatedOutcome.ERROR})

    study.run()

    assert sorted(study.observer.started) == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1)]
    assert {number: state for number, state, _ in study.observer.closed} == dict(enumerate(study.states()))


@pytest.mark.parametrize("slots", [1, 2])
def test_an_epoch_budget_is_a_total_and_running_trials_end(slots: int) -> None:
    study = Study(trials=100, slots=slots, space=smoke_with(epochs=3), epoch_budget=7)

    study.run()

    # After seven epochs a third trial is in its course, and with a second worker a fourth one.
    assert study.states() == [TrialState.COMPLETE] * (2 + slots) + [TrialState.WAITING] * (
        len(study.trial_storage.records()) - 2 - slots
    )
    assert study.executor.epochs == 3 * (2 + slots)
    again = study.again()
    again.run()
    assert again.executor.epochs == 0
    more = study.again(epoch_budget=study.executor.epochs + 1)
    more.run()
    assert more.executor.epochs == 3 * slots
