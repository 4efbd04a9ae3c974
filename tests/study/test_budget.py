"""The promises of `--budget`: a plan from measured seconds, made of figures that a user can check."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fashion_study.config import MOST_TRIALS, StudyConfig
from fashion_study.errors import BadInputError
from fashion_study.store.trials import TrialRecord
from fashion_study.study.budget import BudgetPlan, Rates, expected_epochs, plan_budget, points_to_measure, trials_in
from fashion_study.study.plan import Plan
from fashion_study.trial import DataSource, PointCost, TrialState

DIGITS = DataSource("digits", None, "0" * 64)
# An epoch of 1,000 images, and 300 that validate, takes 1.1 s.
RATES = Rates.measured([PointCost(90_000, 0.5, 0.001), PointCost(110_000, 1.5, 0.001)], 1_000, 300)


def plan(space: str = "wide", **settings: Any) -> Plan:
    config = StudyConfig(space=space, dataset="digits", budget=3600, **settings)
    return Plan(config, *config.check(), DIGITS, "digits-wide", 2)


def budget(seconds: float, workers: int = 2, records: Sequence[TrialRecord] = (), **settings: Any) -> BudgetPlan:
    return plan_budget(plan(**settings), workers, seconds, RATES, records)


def trained(number: int, epochs: int = 2, seconds: float = 11.0) -> TrialRecord:
    curve = dict.fromkeys(range(1, epochs + 1), 0.5)
    return TrialRecord(number, TrialState.COMPLETE, {}, 1, None, 0.5, curve, seconds=seconds)


def test_a_plan_fits_its_time() -> None:
    found = budget(3600)
    assert found.rates.epochs == pytest.approx((1.1, 1.1))
    # Nine repeats of 20 epochs, with 2 s of start and end, in five rounds of two workers.
    assert found.seconds - found.search_seconds == pytest.approx(5 * (20 * 1.1 + 2))
    assert found.repeats == 9

    def worked(trials: int) -> float:
        return (20 + expected_epochs(plan().space, "asha", trials - 1)) * 1.1 + trials * 1.6 * 2

    assert worked(found.trials) <= 2 * found.search_seconds < worked(found.trials + 1)
    assert found.epochs == 20 + expected_epochs(plan().space, "asha", found.trials - 1)


@pytest.mark.parametrize(("workers", "rounds"), [(1, 9), (5, 2), (9, 1), (10, 1), (64, 1)])
def test_finalists_have_time_whatever_the_number_of_workers(workers: int, rounds: int) -> None:
    found = budget(3600, workers)
    assert found.repeats == 9
    assert found.seconds - found.search_seconds == pytest.approx(rounds * 24)


@pytest.mark.parametrize(("finalists", "repeats", "trainings"), [(0, None, 0), (5, 5, 25), (1, 2, 2), (None, 1, 3)])
def test_as_many_finalists_are_planned_as_are_asked_for(
    finalists: int | None, repeats: int | None, trainings: int
) -> None:
    found = budget(3600, finalists=finalists, repeats=repeats)
    assert found.repeats == trainings
    assert found.seconds - found.search_seconds == pytest.approx(math.ceil(trainings / 2) * 24)


def test_a_study_that_pauses_nothing_begins_fewer_trials() -> None:
    assert budget(3600, pruner="none").trials < budget(3600).trials / 3
    assert expected_epochs(plan().space, "none", 10) == 200
    assert expected_epochs(plan().space, "asha", 30) == pytest.approx(130, rel=0.02)  # As in the replay.
    # However few there are, the best one is trained whole.
    assert expected_epochs(plan().space, "asha", 1) == 20


def test_where_no_finalist_fits_the_search_has_all_of_the_time() -> None:
    short = budget(50)
    assert (short.repeats, short.search_seconds) == (0, 50)
    assert "none: there is no time for 2 trainings of 20 epochs" in list(short.lines)[2]
    assert budget(0.1).trials == 1
    assert trials_in(plan(), 2, 0.1, RATES) == 0
    assert trials_in(plan(trials=4), 2, 3600, RATES, [trained(number) for number in range(4)]) == 0


def test_what_is_asked_for_is_the_most() -> None:
    assert budget(3600, trials=7).trials == budget(3600, trials=7).trials_in_twice == 7
    assert budget(3600, trials=10, records=[trained(number) for number in range(4)]).trials == 6
    # Twenty epochs of the baseline, and the best of the others.
    assert budget(3600, epoch_budget=45).trials < 10 < budget(3600).trials
    assert budget(3600).trials < budget(3600).trials_in_twice


def test_a_command_names_what_was_asked_for() -> None:
    assert plan().config.trials == MOST_TRIALS
    assert "--trials" not in plan().config.command()
    assert "--budget 3600s" in plan().config.command()
    assert "--trials 30" in plan(trials=30).config.command()
    assert "--trials" in StudyConfig(trials=MOST_TRIALS).command()


def test_what_a_study_has_trained_counts_more_than_a_measurement() -> None:
    slow = [trained(number) for number in range(8)]
    assert budget(3600, records=slow).rates.epochs == (5.5,) * 8
    assert budget(3600, records=slow).trials < budget(3600).trials
    assert budget(3600, records=slow[:7]).rates == RATES


def test_what_is_infeasible_takes_no_time_but_a_trial() -> None:
    costs = [PointCost(90_000, 1.0, 0.001), PointCost(900_000), PointCost(900_000), PointCost(900_000)]
    rates = Rates.measured(costs, 1_000, 300)
    assert (len(rates.epochs), rates.share, rates.parameters) == (1, 0.25, 90_000)
    assert rates.epoch == pytest.approx(1.1)
    assert plan_budget(plan(), 2, 3600, rates).trials > 3 * plan_budget(plan(), 2, 3600, RATES).trials


def test_a_plan_says_what_a_user_wants_to_know() -> None:
    lines = list(replace(budget(3600), trials=40, epochs=210.4, disk=123 * 2**20, trials_in_twice=79).lines)
    assert lines[0] == "plan for 60 min: an epoch takes about 1.1 s (1.1 to 1.1 s in 2 models), workers: 2"
    assert lines[1] == "  search     58 min, trials: about 40, epochs: about 210"
    assert lines[2] == "  finalists  2 min, up to 9 trainings of 20 epochs"
    assert lines[3].endswith("GiB of memory and 123 MiB of disk")
    assert lines[4] == "  in twice the time, trials: about 79"


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


@pytest.mark.parametrize("wrong", [0, 59, float("nan"), float("inf")])
def test_a_budget_that_is_no_time_is_refused(wrong: float) -> None:
    with pytest.raises(BadInputError, match="budget"):
        StudyConfig(budget=wrong)
