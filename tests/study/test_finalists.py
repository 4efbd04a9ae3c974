"""The promises of the finalists: what is trained again, what wins, and what a kill costs."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from fashion_study.errors import StoreError
from fashion_study.space.file import load_space
from fashion_study.store.trials import MAX_RETRIES, TrialRecord
from fashion_study.study.finalists import (
    ENDED,
    Finalist,
    FinalistPlan,
    Repeats,
    choose,
    contenders,
    plan_finalists,
    rank_finalists,
)
from fashion_study.study.loop import Loop
from fashion_study.testing.memory import MemoryExecutor, MemoryTracker, RecordingObserver
from fashion_study.testing.training import Key, SimulatedOutcome, toy_accuracy
from fashion_study.trial import ParamValue, Precision, TrialResult, TrialSpec, TrialState, trial_seed
from tests.support.executors import IntermittentExecutor, StoreFailureExecutor

SMOKE = load_space("smoke")
SEED = 7


def record(number: int, objective: float | None, epochs: int = 2, learning_rate: float = 1e-3) -> TrialRecord:
    state = TrialState.COMPLETE if objective is not None else TrialState.PRUNED
    params: dict[str, ParamValue] = {"filters_1": 8, "learning_rate": learning_rate, "epochs": epochs}
    curve = dict.fromkeys(range(1, epochs + 1), objective or 0.5)
    return TrialRecord(number, state, params, 1, f"run-{number}-1", objective, curve)


RANKED = (record(4, 0.93), record(2, 0.92), record(0, 0.90), record(1, None))


def finalist(*objectives: float, trial: int = 1) -> Finalist:
    runs = tuple(f"run-{trial}-repeat-{place}" for place, _ in enumerate(objectives, start=1))
    return Finalist(trial, {}, objectives, runs)


@dataclass
class Final:
    """Repeats with everything around them in memory."""

    plan: FinalistPlan = field(default_factory=lambda: FinalistPlan(RANKED[:2], 3))
    slots: int = 1
    outcomes: Mapping[Key, SimulatedOutcome] = field(default_factory=dict)
    tracker: MemoryTracker = field(default_factory=MemoryTracker)
    deadline: float = math.inf
    make_executor: type[MemoryExecutor] = MemoryExecutor
    records: Sequence[TrialRecord] = RANKED

    def source(self) -> Repeats:
        self.observer = RecordingObserver()
        return Repeats(self.plan, self.records, self.tracker, self.observer, SMOKE, SEED, Precision.FLOAT32)

    def run(self, interrupted: Callable[[], bool] = lambda: False) -> tuple[Finalist, ...]:
        self.executor = self.make_executor(self.slots, self.outcomes)
        repeats = self.source()
        Loop(repeats, self.executor, self.observer, interrupted, self.deadline).run()
        return repeats.results()


def test_the_best_complete_trials_are_the_finalists() -> None:
    plan = plan_finalists(RANKED, 2, 3)
    assert [trial.number for trial in plan.trials] == [4, 2]
    assert (plan.repeats, plan.note) == (3, None)


def test_fewer_complete_trials_than_finalists_are_noted() -> None:
    plan = plan_finalists(RANKED, 5, 2)
    assert [trial.number for trial in plan.trials] == [4, 2, 0]
    assert plan.note == "5 finalists with 2 repeats were asked; 3 trials are complete"


@pytest.mark.parametrize(("epochs", "finalists", "repeats"), [(14, 3, 3), (13, 2, 3), (6, 1, 3), (4, 1, 2), (3, 0, 3)])
def test_a_small_budget_drops_finalists_first_then_repeats(epochs: int, finalists: int, repeats: int) -> None:
    plan = plan_finalists(RANKED, 3, 3, epochs=epochs)
    assert (len(plan.trials), plan.repeats) == (finalists, repeats)
    assert (plan.note is None) == (epochs == 14)


def test_a_budget_counts_inherited_epochs() -> None:
    promoted = replace(record(0, 0.9, epochs=3), curve={3: 0.9})
    assert len(plan_finalists([promoted], 1, 2, epochs=6).trials) == 1
    assert plan_finalists([promoted], 1, 2, epochs=5).trials == ()


def test_the_time_left_limits_the_finalists_and_is_named() -> None:
    plan = plan_finalists(RANKED, 3, 3, epochs_in_time=10.5)
    assert len(plan.trials) == 2
    assert plan.note is not None
    assert "do not fit the time left" in plan.note


def test_the_bounds_are_those_of_students_t_test() -> None:
    (one,) = rank_finalists([finalist(0.90, 0.91, 0.93)])
    expected = ttest_1samp(one.objectives, 0, alternative="greater").confidence_interval()
    assert one.lower_bound == pytest.approx(expected.low)
    expected = ttest_1samp(one.objectives, 0).confidence_interval()
    assert one.interval == pytest.approx((expected.low, expected.high))


def test_a_pair_that_is_alike_by_luck_wins_nothing() -> None:
    alike, better = finalist(0.900, 0.900, trial=5), finalist(0.93, 0.88, 0.90, trial=2)
    assert [each.trial for each in rank_finalists([alike, better])] == [2, 5]


def test_fewer_repeats_have_a_lower_bound() -> None:
    twice, thrice = finalist(0.89, 0.91, trial=1), finalist(0.89, 0.90, 0.91, trial=2)
    assert [each.trial for each in rank_finalists([twice, thrice])] == [2, 1]
    single, bounded = rank_finalists([finalist(0.95, trial=1), finalist(0.90, 0.91, trial=2)])
    assert None not in (single.lower_bound, bounded.lower_bound)
    assert [each.lower_bound for each in rank_finalists([finalist(0.95), finalist(trial=3)])] == [None, None]


def test_without_a_complete_repeat_nobody_wins() -> None:
    assert choose(rank_finalists([])) is None
    assert choose(rank_finalists([finalist()])) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_the_median_run_is_the_lower_median(scores: list[float]) -> None:
    one = finalist(*scores)
    assert one.median_run is not None
    median = scores[one.run_ids.index(one.median_run)]
    below = sum(score < median for score in scores)
    above = sum(score > median for score in scores)
    assert below <= (len(scores) - 1) // 2
    assert above <= len(scores) // 2


def test_a_finalist_survives_being_written_down() -> None:
    (one,) = rank_finalists([finalist(0.9, 0.8)])
    assert Finalist.from_dict(one.as_dict()) == one


def test_every_finalist_is_trained_with_seeds_of_its_own() -> None:
    final = Final()
    results = final.run()
    seeds = [spec.seed for spec in final.executor.submitted]
    expected = {trial_seed(SEED, number, repeat) for number in (4, 2) for repeat in (1, 2, 3)}
    assert set(seeds) == expected
    assert len(seeds) == 6
    assert not expected & {trial_seed(SEED, number) for number in (4, 2)}
    assert {result.trial: len(result.objectives) for result in results} == {4: 3, 2: 3}
    assert results == rank_finalists(results)
    height = toy_accuracy(final.executor.submitted[0].hyperparameters, 2)
    assert results[0].objectives == (height,) * 3


def test_who_is_too_far_behind_is_no_contender() -> None:
    near = {1: [0.900, 0.904], 2: [0.899, 0.903], 3: [0.892, 0.894]}
    assert contenders(near) == [1, 2]
    # The same means, but each as unsteady as the distance between them.
    assert contenders({1: [0.897, 0.907], 2: [0.896, 0.906], 3: [0.888, 0.898]}) == [1, 2, 3]
    assert contenders({1: [0.8], 2: [], 3: [0.9]}) == [3, 1, 2]
    assert contenders({1: [0.80, 0.81], 2: [], 3: [0.90, 0.91]}) == [3, 2]


def settle(repeats: Repeats, scores: Mapping[Key, float | None], slots: int, results: float, order: Random) -> None:
    """Train so many at a time, and take the results as they come; after `results` of them, stop the others."""
    running: list[TrialSpec] = []
    while results > 0:
        results -= 1
        while len(running) < slots and (spec := repeats.next()) is not None:
            running.append(repeats.begin(spec))
        if not running:
            return
        spec = running.pop(order.randrange(len(running)))
        objective = scores[spec.number, spec.repeat]
        state = TrialState.FAILED if objective is None else TrialState.COMPLETE
        repeats.settle(spec, TrialResult(*spec.key, state, 2, objective))
    for spec in running:
        repeats.log_loss(spec, "stopped", repeats.stop(spec))


@given(
    st.integers(1, 5),
    st.integers(2, 30),
    st.integers(1, 9),
    st.integers(0, 9),
    st.integers(0, 2**32),
)
def test_the_race_depends_on_the_results_alone(
    repeats: int, epochs: int, slots: int, stopped_after: int, seed: int
) -> None:
    order = Random(seed)
    keys = itertools.product((4, 2, 0), range(1, repeats + 1))
    scores = {key: None if order.random() < 0.1 else order.uniform(0.89, 0.9) for key in keys}
    plan = plan_finalists(RANKED, 3, repeats, epochs=epochs)
    one_by_one, other = Final(plan), Final(plan)
    settle(one_by_one.source(), scores, 1, math.inf, order)
    settle(other.source(), scores, slots, stopped_after, order)
    settle(other.source(), scores, slots, math.inf, order)
    trained = {(run.trial, run.repeat) for run in one_by_one.tracker.repeats()}
    assert {(run.trial, run.repeat) for run in other.tracker.repeats() if run.status in ENDED} == trained
    results = [[(each.trial, each.objectives) for each in final.source().results()] for final in (one_by_one, other)]
    assert results[0] == results[1]
    assert 2 * len(trained) <= epochs
    assert one_by_one.source().left == 0


def test_who_leaves_the_race_is_said_and_counted() -> None:
    records = (RANKED[0], record(2, 0.92, learning_rate=1e-2))
    final = Final(FinalistPlan(records, 3), records=records)
    final.run()
    assert [(spec.number, spec.repeat) for spec in final.executor.submitted] == [(4, 1), (2, 1), (4, 2), (2, 2), (4, 3)]
    assert final.observer.notes == ["trial 002 is trained no more: it is too far behind"]
    assert final.observer.expected[-1] == 5


def test_the_last_epochs_are_for_the_best() -> None:
    final = Final(plan_finalists(RANKED, 2, 3, epochs=10))
    assert {result.trial: len(result.objectives) for result in final.run()} == {4: 3, 2: 2}
    assert final.observer.notes == ["trial 002 is trained no more: the epochs left are for those ahead of it"]


def test_a_second_start_trains_nothing_again() -> None:
    final = Final()
    first = final.run()
    second = Final(tracker=final.tracker)
    assert second.run() == first
    assert second.executor.submitted == []


def test_after_a_stop_only_the_missing_repeats_are_trained() -> None:
    final = Final()
    final.run(lambda: len(final.executor.submitted) == 3)
    assert [run.status for run in final.tracker.runs.values()] == ["complete", "complete", "interrupted"]
    again = Final(tracker=final.tracker)
    results = again.run()
    assert [(spec.number, spec.repeat) for spec in again.executor.submitted] == [(4, 2), (2, 2), (4, 3), (2, 3)]
    assert {len(result.objectives) for result in results} == {3}
    stopped = final.tracker.runs["run-4-repeat-2-2"]
    assert stopped.superseded_by == "run-4-repeat-2-3"


def test_a_repeat_left_running_by_a_kill_is_trained_again() -> None:
    tracker = MemoryTracker()
    left = tracker.open_trial(4, 1, {}, {}, repeat=1)
    results = Final(tracker=tracker).run()
    assert tracker.runs[left].superseded_by is not None
    assert {len(result.objectives) for result in results} == {3}


def test_a_repeat_beside_the_loss_that_ends_the_study_is_kept() -> None:
    outcomes = {(4, 1): SimulatedOutcome.LOST, (2, 1): SimulatedOutcome.LOST}
    # Those that are lost are lost after one epoch.
    records = (*RANKED[:2], record(0, 0.90, epochs=1))
    plan = FinalistPlan(records, 1)
    final = Final(plan, slots=3, outcomes=outcomes, make_executor=StoreFailureExecutor, records=records)
    with pytest.raises(StoreError):
        final.run()
    assert [run.status for run in final.tracker.runs.values()] == ["interrupted", "interrupted", "complete"]


def test_a_repeat_whose_worker_dies_is_trained_again() -> None:
    final = Final(outcomes={(4, 1): SimulatedOutcome.LOST})
    results = final.run()
    assert final.observer.lost[0][2] is TrialState.WAITING
    assert {len(result.objectives) for result in results} == {3}


def test_repeats_wait_for_a_worker() -> None:
    final = Final(outcomes={(4, 1): SimulatedOutcome.LOST}, make_executor=IntermittentExecutor)
    assert {len(result.objectives) for result in final.run()} == {3}


def test_a_repeat_whose_workers_always_die_is_given_up() -> None:
    deadly = {(4, attempt): SimulatedOutcome.LOST for attempt in range(1, MAX_RETRIES + 2)}
    final = Final(FinalistPlan(RANKED[:1], 1), outcomes=deadly)
    (result,) = final.run()
    assert result.objectives == ()
    assert len(final.executor.submitted) == MAX_RETRIES + 1
    assert final.observer.lost[-1][2] is TrialState.FAILED


def test_a_store_that_keeps_failing_gives_no_repeat_up() -> None:
    final = Final()
    lost = {(number, attempt): SimulatedOutcome.LOST for number in range(9) for attempt in range(1, 99)}
    for _ in range(MAX_RETRIES + 2):
        final = Final(tracker=final.tracker, outcomes=lost, make_executor=StoreFailureExecutor)
        with pytest.raises(StoreError, match="the same command goes on"):
            final.run()
        assert {run.status for run in final.tracker.repeats()} == {"KILLED"}

    finalists = Final(tracker=final.tracker).run()

    assert all(len(finalist.objectives) == final.plan.repeats for finalist in finalists)


def test_a_repeat_that_diverges_is_not_tried_again() -> None:
    final = Final(outcomes={(4, 1): SimulatedOutcome.DIVERGED})
    results = final.run()
    assert {result.trial: len(result.objectives) for result in results} == {4: 2, 2: 3}
    again = Final(tracker=final.tracker)
    again.run()
    assert again.executor.submitted == []


def test_repeats_of_an_earlier_start_count_whatever_leads_now() -> None:
    final = Final()
    final.run()
    later = Final(FinalistPlan((), 0), tracker=final.tracker)
    assert {result.trial: len(result.objectives) for result in later.run()} == {4: 3, 2: 3}
    assert later.executor.submitted == []


def test_repeats_that_are_trained_already_take_no_time() -> None:
    final = Final()
    final.run()
    plan = plan_finalists(RANKED, 2, 3, final.tracker.repeats(), epochs_in_time=0.0)
    assert (len(plan.trials), plan.repeats, plan.note) == (2, 3, None)
    assert plan_finalists(RANKED, 2, 3, epochs_in_time=0.0).trials == ()


def test_a_stop_is_no_loss_however_often_it_comes() -> None:
    final = Final(FinalistPlan(RANKED[:1], 1))
    for stops in range(MAX_RETRIES + 2):
        final.run(lambda: len(final.executor.submitted) == 1)
        assert final.observer.lost[-1][2] is TrialState.WAITING, stops
    assert len(final.run()[0].objectives) == 1


def test_after_the_deadline_no_repeat_is_started() -> None:
    final = Final(deadline=-math.inf)
    assert [result.objectives for result in final.run()] == [(), ()]
    assert final.executor.submitted == []
