"""The finalists: the best trials trained again with other seeds, so that luck does not choose the model."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from fashion_study.errors import StudyError
from fashion_study.executors.executor import Event, Executor, losses_last
from fashion_study.space.space import SearchSpace
from fashion_study.statistics import student_interval, student_lower_bound
from fashion_study.store.failures import StoreFailurePolicy
from fashion_study.store.trials import MAX_RETRIES, TrialRecord
from fashion_study.study.progress import Observer
from fashion_study.tracking.tracker import RepeatRun, RepeatTracker
from fashion_study.trial import (
    AttemptLost,
    EpochReport,
    ParamValue,
    Precision,
    TrialResult,
    TrialSpec,
    TrialState,
    trial_seed,
)

DEFAULT_FINALISTS = 3
DEFAULT_REPEATS = 3
TICK_SECONDS = 0.25
# What MLflow calls the run of a repeat that is not trained again.
ENDED = ("FINISHED", "FAILED")


@dataclass(frozen=True)
class Finalist:
    """Show a trial that was trained again: the objective and the run of each repeat that is complete."""

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
    """Say which trials are trained again how often; `note` says why that is less than what was asked."""

    trials: tuple[TrialRecord, ...]
    repeats: int
    note: str | None = None

    @property
    def total(self) -> int:
        """Count the trainings."""
        return len(self.trials) * self.repeats


@dataclass(frozen=True)
class Budget:
    """Limit the finalists: to as many epochs as the trials took, and to the epochs that the time left allows."""

    epochs: float = math.inf
    epochs_in_time: float = math.inf

    def allows(self, epochs: int, missing: int) -> bool:
        """Say whether so many epochs fit, of which `missing` are still to be trained."""
        return epochs <= self.epochs and missing <= self.epochs_in_time


def plan_finalists(
    records: Sequence[TrialRecord], finalists: int, repeats: int, budget: Budget, known: Iterable[RepeatRun] = ()
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


class Repeats:
    """Train the finalists' repeats that the tracking store does not have yet.

    They are no trials: nothing is pruned, and the engine learns nothing of them.
    """

    def __init__(
        self,
        plan: FinalistPlan,
        records: Iterable[TrialRecord],
        space: SearchSpace,
        seed: int,
        precision: Precision,
        executor: Executor,
        tracker: RepeatTracker,
        observer: Observer,
        interrupted: Callable[[], bool] = lambda: False,
        deadline: float | None = None,
    ) -> None:
        self._plan = plan
        self._space = space
        self._seed = seed
        self._precision = precision
        self._executor = executor
        self._tracker = tracker
        self._observer = observer
        self._interrupted = interrupted
        self._deadline = deadline
        self._records = {record.number: record for record in records}
        self._running: dict[tuple[int, int], TrialSpec] = {}
        self._superseded: dict[tuple[int, int], str] = {}
        self._attempts: Counter[int] = Counter()
        self._lost: Counter[tuple[int, int]] = Counter()
        self._open: list[tuple[int, int]] = []
        self._store_failures = StoreFailurePolicy()
        self.busy_seconds = 0.0

    @property
    def left(self) -> int:
        """Count the repeats that a stop or the deadline has left untrained."""
        return len(self._open)

    def run(self) -> tuple[Finalist, ...]:
        """Train what is missing and return every trial that has been trained again, the best first.

        Those of earlier starts count too: what was measured stays, whatever came after it.

        Raises:
            StudyError: no worker can start, or the store fails the workers.
        """
        known = self._tracker.repeats()
        self._take_up(known)
        done = self._plan.total - len(self._open)
        if self._open:
            title = f"finalists: the best {len(self._plan.trials)} trained again, {self._plan.repeats} times each"
            self._observer.begin(title, done, self._plan.total, "repeats")
        try:
            self._train()
        except StudyError:
            self._wind_up()
            raise
        self._wind_up()
        return self._results(self._tracker.repeats())

    def _take_up(self, known: list[RepeatRun]) -> None:
        """See what earlier starts have trained, and end the runs of those that were killed."""
        ended = set()
        for run in known:
            key = run.trial, run.repeat
            self._attempts[run.trial] = max(self._attempts[run.trial], run.attempt)
            if run.status == "RUNNING":
                self._tracker.interrupt_trial(run.trial, run.run_id, "the coordinator died", TrialState.WAITING)
            if run.status in ENDED:
                ended.add(key)
            else:
                self._superseded[key] = run.run_id
        planned = [record.number for record in self._plan.trials]
        # Round by round, so that a study that is stopped has as many repeats of each finalist as it can.
        wanted = [(number, repeat) for repeat in range(1, self._plan.repeats + 1) for number in planned]
        self._open = [key for key in wanted if key not in ended]

    def _train(self) -> None:
        while (self._open or self._running) and not self._interrupted():
            self._fill_slots()
            if not self._running and (self._executor.slots > 0 or self._is_late()):
                break
            for event in losses_last(self._executor.wait(TICK_SECONDS)):
                self._handle(event)

    def _fill_slots(self) -> None:
        while self._open and len(self._running) < self._executor.slots and not self._is_late():
            self._begin(*self._open.pop(0))

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _begin(self, number: int, repeat: int) -> None:
        hyperparameters = self._space.hyperparameters(self._records[number].params)
        seed = trial_seed(self._seed, number, repeat)
        self._attempts[number] += 1
        attempt = self._attempts[number]
        tags = {"seed": str(seed), "precision": self._precision.value}
        run_id = self._tracker.open_trial(number, attempt, hyperparameters.model_dump(), tags, repeat)
        if (earlier := self._superseded.pop((number, repeat), None)) is not None:
            self._tracker.supersede(earlier, run_id)
        spec = TrialSpec(number, attempt, hyperparameters, seed, run_id, self._precision, repeat)
        self._running[spec.key] = spec
        self._executor.submit(spec)
        self._observer.trial_started(spec)

    def _handle(self, event: Event) -> None:
        spec = self._running.get((event.number, event.attempt))
        if spec is None:
            return
        match event:
            case EpochReport():
                self._executor.answer(event, prune=False)
                self._tracker.log_epoch(spec.run_id, event)
                self._observer.epoch_done(spec, event)
            case TrialResult():
                del self._running[spec.key]
                self._tracker.close_trial(spec, event)
                self.busy_seconds += event.seconds
                self._observer.trial_closed(spec, event, None)
                if event.state is TrialState.COMPLETE:
                    self._store_failures.has_answered()
            case AttemptLost():
                del self._running[spec.key]
                self._lose(spec, event.cause, event.by_store)
                if event.by_store:
                    self._store_failures.has_failed(spec.label, event.cause)

    def _lose(self, spec: TrialSpec, cause: str, by_store: bool) -> None:
        key = spec.number, spec.repeat
        self._lost[key] += not by_store
        is_given_up = self._lost[key] > MAX_RETRIES
        state = TrialState.FAILED if is_given_up else TrialState.WAITING
        self._tracker.interrupt_trial(spec.number, spec.run_id, cause, state)
        if not is_given_up:
            self._superseded[key] = spec.run_id
            self._open.insert(0, key)
        self._observer.trial_lost(spec, cause, state)

    def _wind_up(self) -> None:
        if self._running:
            self._executor.stop()
        for spec in self._running.values():
            # Not a loss: a user may stop a study as often as they like.
            self._tracker.interrupt_trial(spec.number, spec.run_id, "the study was stopped", TrialState.WAITING)
            self._open.append((spec.number, spec.repeat))
            self._observer.trial_lost(spec, "the study was stopped", TrialState.WAITING)
        self._running.clear()

    def _results(self, runs: list[RepeatRun]) -> tuple[Finalist, ...]:
        finished = {(run.trial, run.repeat): run for run in runs if run.status == "FINISHED"}
        numbers = {record.number for record in self._plan.trials} | {trial for trial, _ in finished}
        finalists = []
        for number in numbers:
            own = [run for (trial, _), run in sorted(finished.items()) if trial == number]
            scores = tuple(run.objective for run in own if run.objective is not None)
            finalists.append(Finalist(number, self._records[number].params, scores, tuple(run.run_id for run in own)))
        return rank_finalists(finalists)
