"""The promises of `--budget`: a plan from measured seconds, made of figures that a user can check."""

from dataclasses import replace
from typing import Any

import pytest

from fashion_study.config import MOST_TRIALS, StudyConfig
from fashion_study.errors import BadInputError
from fashion_study.store.trials import TrialRecord
from fashion_study.study.budget import BudgetPlan, expected_epochs, plan_budget, points_to_measure
from fashion_study.study.plan import Plan
from fashion_study.trial import DataSource, PointCost, TrialState

DIGITS = DataSource("digits", None, "0" * 64)
# An epoch of 1,000 images, and 300 that validate, takes 1.1 s.
COSTS = [PointCost(90_000, 0.5, 0.001), PointCost(110_000, 1.5, 0.001)]
IMAGES = 1_000, 300


def plan(space: str = "wide", **settings: Any) -> Plan:
    config = StudyConfig(space=space, dataset="digits", budget=3600, **settings)
    return Plan(config, *config.check(), DIGITS, "digits-wide", 2)


def budget(seconds: float, **settings: Any) -> BudgetPlan:
    return plan_budget(plan(**settings), 2, seconds, COSTS, IMAGES)


def test_a_plan_fits_its_time() -> None:
    found = budget(3600)
    assert found.epoch_seconds == pytest.approx((1.1, 1.1))
    # Nine repeats of 20 epochs, with 2 s of start and end, on two workers.
    assert found.seconds - found.search_seconds == pytest.approx(9 * (20 * 1.1 + 2) / 2)
    assert found.repeats == 8  # The ninth would leave one worker idle.

    def worked(trials: int) -> float:
        return (20 + expected_epochs(plan().space, "asha", trials - 1)) * 1.1 + trials * 1.6 * 2

    assert worked(found.trials) <= 2 * found.search_seconds < worked(found.trials + 1)
    assert found.epochs == 20 + expected_epochs(plan().space, "asha", found.trials - 1)


def test_a_study_that_pauses_nothing_begins_fewer_trials() -> None:
    assert budget(3600, pruner="none").trials < budget(3600).trials / 3
    assert expected_epochs(plan().space, "none", 10) == 200
    assert expected_epochs(plan().space, "asha", 30) == pytest.approx(130, rel=0.02)  # As in the replay.


def test_where_no_finalist_fits_the_search_has_all_of_the_time() -> None:
    short = budget(50)
    assert (short.repeats, short.search_seconds) == (0, 50)
    assert "none: 2 trainings of 20 epochs would not fit" in list(short.lines)[2]
    assert budget(0.1).trials == 1


def test_the_trials_asked_for_are_the_most() -> None:
    assert budget(3600, trials=7).trials == 7
    assert plan().config.trials == MOST_TRIALS
    assert str(MOST_TRIALS) not in plan().config.command()
    assert "--budget 3600s" in plan().config.command()


def test_what_a_study_has_trained_counts_more_than_a_measurement() -> None:
    one = TrialRecord(0, TrialState.COMPLETE, {}, 1, None, 0.5, {1: 0.4, 2: 0.5}, seconds=11.0)
    slow = [replace(one, number=number) for number in range(8)]
    known = plan_budget(plan(), 2, 3600, COSTS, IMAGES, slow)
    assert known.epoch_seconds == (5.5,) * 8
    assert known.trials < budget(3600).trials
    assert plan_budget(plan(), 2, 3600, COSTS, IMAGES, slow[:7]).epoch_seconds == pytest.approx((1.1, 1.1))


def test_a_plan_says_what_a_user_wants_to_know() -> None:
    lines = list(replace(budget(3600), trials=40, epochs=210.4, disk=123e6).lines)
    assert lines[0] == "plan for 60 min: an epoch takes about 1.1 s (1.1 to 1.1 s in 2 models), workers: 2"
    assert lines[1] == "  search     58 min, about 40 trials and 210 epochs"
    assert lines[2] == "  finalists  2 min, up to 8 trainings of 20 epochs"
    assert lines[3].endswith("GB of memory and 123 MB of disk")
    assert lines[4] == "  with twice the time the search would begin about 80 trials"


def test_baseline_own_points_and_some_others_are_measured() -> None:
    points = points_to_measure(plan())
    space = plan().space
    assert points[0] == space.baseline_point
    assert points[1:4] == tuple(space.hyperparameters(space.complete(point)) for point in space.points)
    assert len(set(points)) == len(points) == 12
    assert points_to_measure(plan()) == points


def test_a_small_space_is_measured_whole() -> None:
    fixed = plan("smoke", sampler="grid")
    assert 1 <= len(points_to_measure(fixed)) <= 9


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf")])
def test_a_budget_that_is_no_time_is_refused(wrong: float) -> None:
    with pytest.raises(BadInputError, match="budget"):
        StudyConfig(budget=wrong)
