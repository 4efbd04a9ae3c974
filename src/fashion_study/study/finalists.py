"""The finalists: the best trials trained again with other seeds, so that luck does not choose the model."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from fashion_study.space.space import SearchSpace
from fashion_study.statistics import student_interval, student_lower_bound
from fashion_study.store.trials import MAX_RETRIES, TrialRecord
from fashion_study.study.loop import TrackedSource, Tracker
from fashion_study.tracking.attempt import Attempt
from fashion_study.trial import (
    AttemptLost,
    ParamValue,
    Precision,
    TrialResult,
    TrialSpec,
    TrialState,
    trial_seed,
)

DEFAULT_FINALISTS = 3
DEFAULT_REPEATS = 3
# What MLflow calls the run of a repeat that is not trained again.
ENDED = ("FINISHED", "FAILED")


@dataclass(frozen=True)
class Finalist:
    """A trial that was trained again: the objective and the run of each repeat that is complete."""

    trial: int
    params: Mapping[str, ParamValue]
    objectives: tuple[float, ...]
    run_ids: tuple[str, ...]

    @property
    def mean(self) -> float | None:
        """Return the mean objective, None without a complete repeat."""
        return mean(self.objectives) if self.objectives else None

    @property
    def sd(self) -> float | None:
        """Return the standard deviation of the objectives, None for fewer than two."""
        return stdev(self.objectives) if len(self.objectives) > 1 else None

    @property
    def lower_bound(self) -> float | None:
        """Return the one-sided 95 % lower confidence bound of the mean (Student's t), None for fewer than two."""
        return student_lower_bound(self.objectives) if len(self.objectives) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the two-sided 95 % confidence interval of the mean (Student's t), None for fewer than two."""
        return student_interval(self.objectives) if len(self.objectives) > 1 else None

    @property
    def median_run(self) -> str | None:
        """Return the run of the repeat with the median objective, the lower one of two."""
        ranked = sorted(zip(self.objectives, self.run_ids, strict=True))
        return ranked[(len(ranked) - 1) // 2][1] if ranked else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "trial": self.trial,
            "params": dict(self.params),
            "objectives": list(self.objectives),
            "run_ids": list(self.run_ids),
            "mean": self.mean,
            "sd": self.sd,
            "lower_bound": self.lower_bound,
            "interval": self.interval,
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "Finalist":
        """Return what `as_dict` was made of."""
        return cls(entry["trial"], entry["params"], tuple(entry["objectives"]), tuple(entry["run_ids"]))


@dataclass(frozen=True)
class FinalistPlan:
    """Which trials are trained again, and how often; `note` says why that is less than what was asked for."""

    trials: tuple[TrialRecord, ...]
    repeats: int
    note: str | None = None

    @property
    def total(self) -> int:
        """Count the trainings."""
        return len(self.trials) * self.repeats


@dataclass(frozen=True)
class Budget:
    """The limits of the finalists: the epochs that the trials took, and those that the time left allows."""

    epochs: float = math.inf
    epochs_in_time: float = math.inf

    def allows(self, epochs: int, missing: int) -> bool:
        """Return whether so many epochs fit, of which `missing` are still to be trained."""
        return epochs <= self.epochs and missing <= self.epochs_in_time


def plan_finalists(
    records: Sequence[TrialRecord], finalists: int, repeats: int, budget: Budget, known: Iterable[Attempt] = ()
) -> FinalistPlan:
    """Choose the best complete trials to train again, as many and as often as the budget allows.

    Fewer trials come before fewer repeats: two repeats say next to nothing of their spread. `records` are ranked, the
    best first; `known` are the repeats of earlier starts.
    """
    done = {(run.trial, run.repeat) for run in known if run.status in ENDED}
    complete = [record for record in records if record.state is TrialState.COMPLETE]
    asked = f"{finalists} finalists with {repeats} repeats"
    chosen = complete[:finalists]
    note = None if len(chosen) == finalists else f"{asked} were asked; {len(chosen)} trials are complete"
    for fewer_repeats in range(repeats, min(repeats, 2) - 1, -1):
        for count in range(len(chosen), 0, -1):
            wanted = [(trial, repeat) for trial in chosen[:count] for repeat in range(1, fewer_repeats + 1)]
            # A repeat trains what a trial has taken over, too.
            missing = sum(trial.reached for trial, repeat in wanted if (trial.number, repeat) not in done)
            if budget.allows(sum(trial.reached for trial, _ in wanted), missing):
                if (count, fewer_repeats) != (len(chosen), repeats):
                    note = _shortfall(asked, f"{count} with {fewer_repeats}", budget)
                return FinalistPlan(tuple(chosen[:count]), fewer_repeats, note)
    return FinalistPlan((), repeats, _shortfall(asked, "none", budget) if chosen else note)


def _shortfall(asked: str, affordable: str, budget: Budget) -> str:
    if budget.epochs_in_time < budget.epochs:
        return f"{asked} do not fit the time left; {affordable} can be trained"
    return (
        f"{asked} would train more epochs than all trials did ({budget.epochs:.0f}); {affordable} fit. "
        "Ask for more with --finalists and --repeats"
    )


def choose(finalists: Iterable[Finalist]) -> Finalist | None:
    """Return the finalist with the highest lower bound of its mean; None where no repeat is complete.

    Where repeats failed and only one is left there is no bound, and such a finalist comes after those with one.
    """
    return next((finalist for finalist in rank_finalists(finalists) if finalist.objectives), None)


def rank_finalists(finalists: Iterable[Finalist]) -> tuple[Finalist, ...]:
    """Sort finalists by the lower bound of their mean, then by the mean, the best first."""

    def key(finalist: Finalist) -> tuple[float, float, int]:
        bound = -math.inf if finalist.lower_bound is None else finalist.lower_bound
        average = -math.inf if finalist.mean is None else finalist.mean
        return -bound, -average, finalist.trial

    return tuple(sorted(finalists, key=key))


class Repeats(TrackedSource):
    """The finalists' repeats that the tracking store does not have yet, as the work of a loop.

    They are no trials: nothing is pruned, and the engine learns nothing of them.
    """

    def __init__(
        self,
        plan: FinalistPlan,
        records: Iterable[TrialRecord],
        tracker: Tracker,
        space: SearchSpace,
        seed: int,
        precision: Precision,
    ) -> None:
        super().__init__(tracker)
        self._plan = plan
        self._records = {record.number: record for record in records}
        self._space = space
        self._seed = seed
        self._precision = precision
        self._superseded: dict[tuple[int, int], str] = {}
        self._attempts: Counter[int] = Counter()
        self._lost: Counter[tuple[int, int]] = Counter()
        ended = {key for run in tracker.repeats() if (key := self._count_attempt(run)) is not None}
        planned = [record.number for record in plan.trials]
        # Round by round, so that a study that is stopped has as many repeats of each finalist as it can.
        wanted = [(number, repeat) for repeat in range(1, plan.repeats + 1) for number in planned]
        self._open = [key for key in wanted if key not in ended]

    @property
    def left(self) -> int:
        """Count the repeats that are not trained."""
        return len(self._open)

    def results(self) -> tuple[Finalist, ...]:
        """Return every trial that has been trained again, the best first.

        Those of earlier starts count too: what was measured stays, whatever came after it.
        """
        finished = {(run.trial, run.repeat): run for run in self._tracker.repeats() if run.status == "FINISHED"}
        finalists = []
        for number in {record.number for record in self._plan.trials} | {trial for trial, _ in finished}:
            own = [run for (trial, _), run in sorted(finished.items()) if trial == number]
            scores = tuple(run.objective for run in own if run.objective is not None)
            finalists.append(Finalist(number, self._records[number].params, scores, tuple(run.run_id for run in own)))
        return rank_finalists(finalists)

    def next(self) -> TrialSpec | None:
        """Take the first of the repeats that are left."""
        if not self._open:
            return None
        number, repeat = self._open.pop(0)
        hyperparameters = self._space.hyperparameters(self._records[number].params)
        seed = trial_seed(self._seed, number, repeat)
        supersedes = self._superseded.get((number, repeat))
        return TrialSpec(
            number, 0, hyperparameters, seed, precision=self._precision, repeat=repeat, supersedes=supersedes
        )

    def put_back(self, spec: TrialSpec) -> None:
        """Leave a repeat to be trained later."""
        self._open.insert(0, (spec.number, spec.repeat))

    def begin(self, spec: TrialSpec) -> TrialSpec:
        """Count the attempt among all those at the trial's repeats, and open its run."""
        self._attempts[spec.number] += 1
        return super().begin(replace(spec, attempt=self._attempts[spec.number]))

    def settle(self, spec: TrialSpec, result: TrialResult) -> None:
        """Close the run."""
        self._tracker.close_trial(spec, result)

    def lose(self, spec: TrialSpec, lost: AttemptLost) -> TrialState:
        """Train the repeat again, or give it up after too many losses."""
        key = spec.number, spec.repeat
        self._lost[key] += not lost.by_store
        return TrialState.FAILED if self._lost[key] > MAX_RETRIES else self.stop(spec)

    def stop(self, spec: TrialSpec, *, by_error: bool = False) -> TrialState:  # noqa: ARG002
        """Leave the repeat to be trained again: a user may stop a study as often as they like."""
        self._superseded[spec.number, spec.repeat] = spec.run_id
        self.put_back(spec)
        return TrialState.WAITING

    def _count_attempt(self, run: Attempt) -> tuple[int, int] | None:
        """Count an attempt of an earlier start, and end its run if it was killed; return the repeat if it has ended."""
        key = run.trial, run.repeat
        self._attempts[run.trial] = max(self._attempts[run.trial], run.number)
        if run.status in ENDED:
            return key
        if run.status == "RUNNING":
            self._tracker.interrupt_trial(run.trial, run.run_id, "the coordinator died", TrialState.WAITING)
        self._superseded[key] = run.run_id
        return None
