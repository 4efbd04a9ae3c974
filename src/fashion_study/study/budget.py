"""A study's plan for a budget of time: how many trials, epochs and repeats fit into it, from measured seconds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from fashion_study.trial import Hyperparameters, PointCost, TrialSpec

# For the figures, the report and the registration at the end.
END_SECONDS = 20.0
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
class BudgetPlan:
    """A plan for so many `seconds` from now: new `trials` and the `epochs` that they train; all figures are estimates.

    After `search_seconds` the rest is for the finalists: `repeats` trainings of `repeat_epochs`. `epoch_seconds` are
    those of an epoch of each model that was measured, `disk` is in bytes.
    """

    seconds: float
    search_seconds: float
    workers: int
    epoch_seconds: tuple[float, ...]
    trials: int
    epochs: float
    repeats: int
    repeat_epochs: int
    disk: float

    @property
    def lines(self) -> Iterator[str]:
        """Describe the plan."""
        low, high = min(self.epoch_seconds), max(self.epoch_seconds)
        search, finalists = duration(self.search_seconds), duration(self.seconds - self.search_seconds)
        repeats = f"trainings of {self.repeat_epochs} epochs"
        yield (
            f"plan for {duration(self.seconds)}: an epoch takes about {mean(self.epoch_seconds):.3g} s "
            f"({low:.3g} to {high:.3g} s in {len(self.epoch_seconds)} models), workers: {self.workers}"
        )
        yield f"  search     {search}, about {self.trials:,} trials and {self.epochs:,.0f} epochs"
        if self.repeats:
            yield f"  finalists  {finalists}, up to {self.repeats:,} {repeats}"
        else:
            yield f"  finalists  none: {SURE_REPEATS} {repeats} would not fit beside a search"
        yield (
            f"  needs      about {self.workers * BYTES_PER_WORKER / 2**30:.1f} GB of memory and "
            f"{max(1, round(self.disk / 1e6)):,} MB of disk"
        )
        yield f"  with twice the time the search would begin about {2 * self.trials:,} trials"


def points_to_measure(plan: Plan) -> tuple[Hyperparameters, ...]:
    """Return the points whose cost stands for that of the space: its baseline, its own points, some drawn at random."""
    storage = TrialStorage(InMemoryStorage(), "measured")
    engine = OptunaEngine(storage, plan.space, "random", "none", plan.config.seed, plan.points)
    answers = [engine.ask() for _ in range(1 + len(plan.points) + DRAWN_POINTS)]
    return tuple(answer.hyperparameters for answer in answers if isinstance(answer, TrialSpec))


def plan_budget(
    plan: Plan,
    workers: int,
    seconds: float,
    costs: Sequence[PointCost],
    images: tuple[int, int],
    records: Sequence[TrialRecord] = (),
) -> BudgetPlan:
    """Plan what to do in so many `seconds`, at least one trial.

    `costs` are those of some points, `images` those that train and that validate. What the `records` of a study say
    of its epochs counts instead, where there are enough of them.
    """
    space = plan.space
    training, validation = images
    per_epoch = [cost.seconds_per_image * (training + VALIDATION_COST * validation) for cost in costs]
    start = STARTS_AND_ENDS * mean(cost.start_seconds for cost in costs)
    known = [record.seconds / record.reached for record in records if record.seconds and record.reached]
    if len(known) >= ENOUGH_TRIALS:
        per_epoch, start = known, 0.0  # It is in them.
    average = mean(per_epoch)
    # Finalists are rather slow ones: what is large is often good.
    repeat = (average + max(per_epoch)) / 2 * space.max_epochs + start
    most = min(FINALISTS_SHARE * seconds, DEFAULT_FINALISTS * DEFAULT_REPEATS * repeat / workers)
    repeats = workers * math.floor(most / repeat)
    search = seconds - most if repeats >= SURE_REPEATS else seconds

    def epochs_of(trials: int) -> float:
        whole = 0 if records else 1  # The baseline, which is never paused.
        return whole * space.baseline_point.epochs + expected_epochs(space, plan.config.pruner, trials - whole)

    trials = 1
    while trials < plan.config.trials and (
        epochs_of(trials + 1) * average + (trials + 1) * HALVING_MISTAKES * start <= search * workers
    ):
        trials += 1
    parameters = mean(cost.parameters for cost in costs)
    return BudgetPlan(
        seconds,
        search,
        workers,
        tuple(per_epoch),
        trials,
        epochs_of(trials),
        repeats if repeats >= SURE_REPEATS else 0,
        space.max_epochs,
        trials * (RUN_BYTES + STORED_WEIGHTS * FLOAT_BYTES * parameters),
    )


def expected_epochs(space: SearchSpace, pruner: str, trials: int) -> float:
    """Return about how many epochs so many trials train; of a pruner that pauses nothing, all of theirs."""
    rungs = rungs_of(space.max_epochs)
    if pruner != "asha" or not rungs:
        return float(trials * space.max_epochs)
    parts = pairwise([0, *rungs, space.max_epochs])
    epochs = [(end - begin) / float(REDUCTION) ** rung for rung, (begin, end) in enumerate(parts)]
    return HALVING_MISTAKES * trials * sum(epochs)
