"""A study's plan for a budget of time: how many trials, epochs and repeats fit into it, from measured seconds."""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import mean

from optuna.storages import InMemoryStorage

from fashion_study.engines.asha import REDUCTION, rungs_of
from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.executors.local import BYTES_PER_WORKER
from fashion_study.space.space import SearchSpace
from fashion_study.store.trials import TrialRecord, TrialStorage
from fashion_study.study.finalists import DEFAULT_FINALISTS, DEFAULT_REPEATS, SURE_REPEATS
from fashion_study.study.plan import Plan
from fashion_study.study.progress import duration
from fashion_study.trial import BASELINE_NUMBER, Hyperparameters, PointCost, TrialSpec

# For the figures, the report and the registration at the end, a share of a budget and the most of it.
END_SHARE, END_SECONDS = 0.1, 20.0
# The most of a budget that is kept for the finalists.
FINALISTS_SHARE = 0.4
# So many points of the space are measured beside the baseline and the space's own points.
DRAWN_POINTS = 8
# So many trials that were trained say better than a measurement what an epoch takes.
ENOUGH_TRIALS = 8
# An image that validates takes a third of what one that trains does: the backward pass costs two more.
VALIDATION_COST = 1 / 3
# Halving lets go on what looks good among the first few: in the replay, thirty trials of up to 20 epochs train 130
# epochs, and would train 82 if the best of all of them alone went on.
HALVING_MISTAKES = 1.6
# An attempt ends with figures and files, which take about as long as its start.
STARTS_AND_ENDS = 2
FLOAT_BYTES = 4
# Of each weight: in the model's file, and in a checkpoint with the best epoch's and what an optimizer keeps of it.
STORED_WEIGHTS = 5
# Figures and tables of a run.
RUN_BYTES = 400_000


@dataclass(frozen=True)
class Rates:
    """The seconds of an epoch in each of some models that would be trained, and those around an attempt's epochs.

    `share` is how many of the space's models would be trained at all; `parameters` is what those have on average.
    `baseline` is the seconds of an epoch of the baseline.
    """

    epochs: tuple[float, ...]
    around: float
    share: float
    parameters: float
    baseline: float

    @classmethod
    def measured(cls, costs: Sequence[PointCost], training_images: int, validation_images: int) -> "Rates":
        """Return what was measured of a baseline and of some more points."""
        images = training_images + VALIDATION_COST * validation_images
        trained = [cost for cost in costs if cost.seconds_per_image]
        return cls(
            tuple(cost.seconds_per_image * images for cost in trained),
            STARTS_AND_ENDS * mean(cost.start_seconds for cost in trained),
            len(trained) / len(costs),
            mean(cost.parameters for cost in trained),
            costs[0].seconds_per_image * images,
        )

    def after(self, records: Sequence[TrialRecord]) -> "Rates":
        """Return what trials that were trained say of the epochs instead, where they are enough to tell."""
        known = tuple(each.seconds / each.reached for each in records if each.seconds and each.reached)
        # What is around the epochs is in them.
        return replace(self, epochs=known, around=0.0) if len(known) >= ENOUGH_TRIALS else self

    @property
    def epoch(self) -> float:
        """Return the seconds of an epoch of a model that is trained, on average."""
        return mean(self.epochs)


@dataclass(frozen=True)
class BudgetPlan:
    """A plan for so many `seconds` from now: new `trials` and the `epochs` that they train; all figures are estimates.

    After `search_seconds` the rest is for the finalists: `repeats` trainings of `repeat_epochs`. `disk` is in bytes,
    `trials_in_twice` is what twice the time would be enough for.
    """

    seconds: float
    search_seconds: float
    workers: int
    rates: Rates
    trials: int
    epochs: float
    repeats: int
    repeat_epochs: int
    disk: float
    trials_in_twice: int

    @property
    def lines(self) -> Iterator[str]:
        """Describe the plan."""
        rates = self.rates
        search, finalists = duration(self.search_seconds), duration(self.seconds - self.search_seconds)
        repeats = f"trainings of {self.repeat_epochs} epochs"
        yield (
            f"plan for {duration(self.seconds)}: an epoch takes about {rates.epoch:.3g} s "
            f"({min(rates.epochs):.3g} to {max(rates.epochs):.3g} s in {len(rates.epochs)} models), "
            f"workers: {self.workers}"
        )
        yield f"  search     {search}, trials: about {self.trials:,}, epochs: about {self.epochs:,.0f}"
        if self.repeats:
            yield f"  finalists  {finalists}, up to {self.repeats:,} {repeats}"
        else:
            yield f"  finalists  none: there is no time for {SURE_REPEATS} {repeats}, or none were asked for"
        yield (
            f"  needs      about {self.workers * BYTES_PER_WORKER / 2**30:.1f} GiB of memory and "
            f"{max(1, round(self.disk / 2**20)):,} MiB of disk"
        )
        yield f"  in twice the time, trials: about {self.trials_in_twice:,}"


def time_to_plan(budget: float) -> float:
    """Return what a budget has for search and finalists, in seconds like it."""
    return budget - min(END_SHARE * budget, END_SECONDS)


def points_to_measure(plan: Plan) -> tuple[Hyperparameters, ...]:
    """Return the points whose cost stands for that of the space: its baseline, its own points, some drawn at random."""
    storage = TrialStorage(InMemoryStorage(), "measured")
    engine = OptunaEngine(storage, plan.space, "random", "none", plan.config.seed, plan.points)
    answers = [engine.ask() for _ in range(1 + len(plan.points) + DRAWN_POINTS)]
    return tuple(answer.hyperparameters for answer in answers if isinstance(answer, TrialSpec))


def plan_budget(
    plan: Plan, workers: int, seconds: float, rates: Rates, records: Sequence[TrialRecord] = ()
) -> BudgetPlan:
    """Plan what to do in so many `seconds`, at least one trial; `records` are the trials that a study has already."""
    config, rates = plan.config, rates.after(records)
    most = DEFAULT_FINALISTS if config.finalists is None else config.finalists
    most *= DEFAULT_REPEATS if config.repeats is None else config.repeats
    # Finalists are rather slow ones: what is large is often good. Workers train them side by side.
    repeat = (rates.epoch + max(rates.epochs)) / 2 * plan.space.max_epochs + rates.around
    rounds = min(math.ceil(most / workers), math.floor(FINALISTS_SHARE * seconds / repeat))
    repeats = min(most, rounds * workers)
    search = seconds - rounds * repeat if repeats >= SURE_REPEATS else seconds
    trials = max(1, trials_in(plan, workers, search, rates, records))
    return BudgetPlan(
        seconds,
        search,
        workers,
        rates,
        trials,
        _epochs_of(plan, trials, records),
        repeats if repeats >= SURE_REPEATS else 0,
        plan.space.max_epochs,
        trials * (RUN_BYTES + STORED_WEIGHTS * FLOAT_BYTES * rates.parameters),
        max(1, trials_in(plan, workers, search + seconds, rates, records)),
    )


def trials_in(plan: Plan, workers: int, seconds: float, rates: Rates, records: Sequence[TrialRecord] = ()) -> int:
    """Return how many new trials so many seconds are enough for, no more than a study is asked for."""
    config, rates = plan.config, rates.after(records)
    left = config.trials - sum(record.state.is_counted for record in records)
    epochs = (config.epoch_budget or math.inf) - sum(len(record.curve) for record in records)

    def fits(trials: int) -> bool:
        trained = _epochs_of(plan, trials, records)
        around = HALVING_MISTAKES * trials * rates.around
        baseline = 0 if _has_baseline(records) else plan.space.baseline_point.epochs * (rates.baseline - rates.epoch)
        work = rates.share * (trained * rates.epoch + around) + baseline
        return trained <= epochs and work <= workers * seconds

    # What a trial takes does not fall with their number.
    return bisect_left(range(1, left + 1), True, key=lambda trials: not fits(trials))


def expected_epochs(space: SearchSpace, pruner: str, trials: int) -> float:
    """Return about how many epochs so many trials train; of a pruner that pauses nothing, all of theirs."""
    rungs = rungs_of(space.max_epochs)
    if pruner != "asha" or not rungs:
        return float(trials * space.max_epochs)
    parts = pairwise([0, *rungs, space.max_epochs])
    epochs = [(end - begin) / float(REDUCTION) ** rung for rung, (begin, end) in enumerate(parts)]
    # In the end the best one is trained whole, however few there are.
    return max(HALVING_MISTAKES * trials * sum(epochs), trials - 1 + float(space.max_epochs) if trials else 0.0)


def _epochs_of(plan: Plan, trials: int, records: Sequence[TrialRecord]) -> float:
    """Return the epochs that new trials train, the baseline, which is never paused, among them where it is to come."""
    whole = 0 if _has_baseline(records) else 1
    return whole * plan.space.baseline_point.epochs + expected_epochs(plan.space, plan.config.pruner, trials - whole)


def _has_baseline(records: Sequence[TrialRecord]) -> bool:
    return any(record.number == BASELINE_NUMBER and record.state.is_ended for record in records)
