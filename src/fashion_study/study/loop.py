"""The one loop that hands work to workers. No store, no engine and no process is known here but by its protocol."""

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from fashion_study.errors import StudyError
from fashion_study.executors.executor import Event, Executor
from fashion_study.store.checkpoints import Checkpoints
from fashion_study.store.failures import StoreFailurePolicy
from fashion_study.study.progress import Observer
from fashion_study.tracking.attempt import Attempt
from fashion_study.trial import AttemptLost, Epoch, EpochReport, TrialResult, TrialSpec, TrialState

TICK_SECONDS = 0.25

Best = tuple[int, float]


class Source(ABC):
    """The work of a loop, and those who are told what becomes of it: a subclass has `next`, `settle` and `lose`.

    The loop calls `log_epochs`, `settle` and `log_loss` when no worker waits for an answer, in the order of what
    happened, and everything else at once.
    """

    @abstractmethod
    def next(self) -> TrialSpec | None:
        """Return the next attempt, whose run is not open yet; None while there is nothing to train."""

    def put_back(self, spec: TrialSpec) -> None:
        """Take back an attempt that no worker has begun."""

    def begin(self, spec: TrialSpec) -> TrialSpec:
        """Open the run of an attempt, and return the attempt with it."""
        return spec

    def report(self, spec: TrialSpec, report: EpochReport) -> bool:  # noqa: ARG002
        """Take an epoch's report, and return whether the attempt should end there."""
        return False

    def log_epochs(self, spec: TrialSpec, *reports: EpochReport) -> None:
        """Add epochs to the run's curves."""

    def judge(self, spec: TrialSpec, result: TrialResult) -> TrialResult:  # noqa: ARG002
        """Return a result as it counts: a trial that the worker has stopped may be paused."""
        return result

    def record(self, spec: TrialSpec, result: TrialResult) -> None:
        """Make a result safe: after a kill the next start settles it."""

    @abstractmethod
    def settle(self, spec: TrialSpec, result: TrialResult) -> Best | None:
        """Write down the rest of a result; return the number and the objective of the best trial so far."""

    @abstractmethod
    def lose(self, spec: TrialSpec, lost: AttemptLost) -> TrialState:
        """Take an attempt whose worker died or was failed by the store; return where that leaves its trial."""

    def stop(self, spec: TrialSpec, *, counted: bool) -> TrialState:  # noqa: ARG002
        """Take an attempt that was stopped, and return where that leaves its trial.

        What an error of the study or its deadline has stopped is not `counted` against the trial.
        """
        return TrialState.WAITING

    def log_loss(self, spec: TrialSpec, cause: str, state: TrialState) -> None:
        """End the run of an attempt that was lost or stopped; `state` is where that leaves its trial."""


@dataclass(eq=False)
class Loop:
    """Every worker is kept busy until the source has nothing left, the time is over, or `interrupted` says stop.

    After the `deadline`, or when no `epochs` are left, no attempt is begun; those that run come to their end, or, where
    the deadline `is_hard`, are stopped at the end of the last epoch before it, from where they can go on. A worker
    waits for what its answer rests on, and for nothing more: all else that goes to the stores waits in `_later` until
    no message does. An attempt that was lost goes on before what was asked for meanwhile: a study of one worker comes
    to the same, whatever kills that. `after_result` is called when a result is written down.
    """

    source: Source
    executor: Executor
    observer: Observer
    interrupted: Callable[[], bool] = lambda: False
    deadline: float = math.inf
    epochs: float = math.inf
    is_hard: bool = False
    after_result: Callable[[], None] = lambda: None
    busy_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._ready: deque[TrialSpec] = deque()
        self._running: dict[tuple[int, int], TrialSpec] = {}
        self._stopped: set[tuple[int, int]] = set()
        # When each attempt began its epoch.
        self._since: dict[tuple[int, int], float] = {}
        self._later: deque[Callable[[], None]] = deque()
        # The epochs of each attempt that wait there, to be logged together.
        self._unlogged: dict[tuple[int, int], list[EpochReport]] = {}
        self._store_failures = StoreFailurePolicy()

    def run(self) -> None:
        """Train until nothing is left to begin, then return with nothing running.

        Raises:
            StudyError: no worker can start, or the store fails the workers; no attempt counts against its trial by it.
        """
        try:
            self._run()
        except StudyError:
            self._wind_up(by_error=True)
            raise
        self._wind_up(by_error=False)

    def _run(self) -> None:
        while not self.interrupted():
            self._fill_slots()
            if self._later:
                self._later.popleft()()
            elif not self._running and not self._waits_for_a_slot():
                break
            if not self._later:
                self._prepare()
            events = self.executor.wait(0 if self._later else TICK_SECONDS)
            # Losses last: one may end the study, and results that came with it would be trained again.
            for event in sorted(events, key=lambda event: isinstance(event, AttemptLost)):
                self._handle(event)

    def _fill_slots(self) -> None:
        while len(self._running) < self.executor.slots and not self._is_over():
            self._prepare()
            if not self._ready:
                return
            spec = self._ready.popleft()
            while spec.supersedes is not None and self._later:
                self._later.popleft()()  # Among it is the end of the run in which the attempt may go on.
            spec = self.source.begin(spec)
            self._running[spec.key] = spec
            self._since[spec.key] = time.monotonic()
            self.executor.submit(spec)
            self.observer.trial_started(spec)

    def _waits_for_a_slot(self) -> bool:
        """Return whether something is left to train and no worker is there: a cluster may have lost its last node."""
        if self.executor.slots > 0 or self._is_over():
            return False
        self._prepare()
        return bool(self._ready)

    def _prepare(self) -> None:
        """Ask for the next attempt, so that it is ready when a worker is free."""
        if not self._ready and (spec := self._ask()) is not None:
            self._ready.append(spec)

    def _ask(self) -> TrialSpec | None:
        return None if self._is_over() else self.source.next()

    def _is_over(self) -> bool:
        # What was stopped for the time would be asked for again.
        return bool(self._stopped) or time.monotonic() >= self.deadline or self.epochs <= 0

    def _answer(self, spec: TrialSpec, report: EpochReport) -> None:
        # After the last epoch nothing is left to save: the attempt is complete.
        is_last = report.epoch >= spec.hyperparameters.epochs
        prune = self.source.report(spec, report) and not is_last
        now = time.monotonic()
        # Another epoch that takes as long, with its validation and its checkpoint, would end too late.
        if not (prune or is_last) and self.is_hard and 2 * now - self._since[spec.key] > self.deadline:
            self._stopped.add(spec.key)
        self._since[spec.key] = now
        self.executor.answer(report, prune=prune or spec.key in self._stopped)
        if report.epoch > spec.resumes:  # Else it was trained before, and its answer is asked for again.
            self.epochs -= 1
            if spec.key not in self._unlogged:
                self._later.append(lambda: self.source.log_epochs(spec, *self._unlogged.pop(spec.key)))
            self._unlogged.setdefault(spec.key, []).append(report)
            self.observer.epoch_done(spec, report)

    def _handle(self, event: Event) -> None:
        spec = self._running.get((event.number, event.attempt))
        if spec is None:
            return  # From an attempt that was superseded.
        match event:
            case EpochReport():
                self._answer(spec, event)
            case TrialResult() if spec.key in self._stopped and event.state is TrialState.PRUNED:
                self.busy_seconds += event.seconds
                del self._running[spec.key]
                self._end_run(spec, "the time of --budget is over", self.source.stop(spec, counted=False))
            case TrialResult():
                result = self.source.judge(spec, event)
                self.source.record(spec, result)
                self.busy_seconds += result.seconds
                del self._running[spec.key]
                self._later.append(lambda: self._settle(spec, result))
                if result.state in (TrialState.COMPLETE, TrialState.PAUSED):
                    self._store_failures.has_answered()
            case AttemptLost():
                del self._running[spec.key]
                self._lose(spec, event)

    def _lose(self, spec: TrialSpec, lost: AttemptLost) -> None:
        state = self.source.lose(spec, lost)
        self._end_run(spec, lost.cause, state)
        if lost.by_store:
            self._store_failures.has_failed(spec.label, lost.cause)
        if state is TrialState.WAITING and self._ready and (again := self._ask()) is not None:
            self._ready.appendleft(again)

    def _settle(self, spec: TrialSpec, result: TrialResult) -> None:
        best = self.source.settle(spec, result)
        self.observer.trial_closed(spec, result, best)
        self.after_result()

    def _end_run(self, spec: TrialSpec, cause: str, state: TrialState) -> None:
        self._later.append(lambda: self.source.log_loss(spec, cause, state))
        self.observer.trial_lost(spec, cause, state)

    def _wind_up(self, *, by_error: bool) -> None:
        """Take back whatever has not come to its end, and write down the rest."""
        if self._running:
            self.executor.close()
        for spec in self._running.values():
            self._end_run(spec, "the study was stopped", self.source.stop(spec, counted=not by_error))
        self._running.clear()
        for spec in self._ready:
            self.source.put_back(spec)
        self._ready.clear()
        while self._later:
            self._later.popleft()()


class Tracker(Protocol):
    """The runs of one study's trials, as the loop writes them."""

    def open_trial(
        self, number: int, attempt: int, params: Mapping[str, object], tags: Mapping[str, str], repeat: int = 0
    ) -> str:
        """Open a run for an attempt at a trial or at a finalist's repeat, nested under the study's; return its id."""

    def resume_trial(self, spec: TrialSpec, epochs: Sequence[Epoch]) -> None:
        """Open the run of an earlier attempt again, and add what its curves lack of these epochs."""

    def log_epochs(self, run_id: str, *epochs: Epoch) -> None:
        """Add epochs to the curves of a run."""

    def record_result(self, spec: TrialSpec, result: TrialResult) -> None:
        """Log the final metrics and how the attempt ended, at once: enough to take a result over after a kill."""

    def close_trial(self, spec: TrialSpec, result: TrialResult) -> None:
        """Give the run its status and its readable name, and log the result where that is not done yet."""

    def interrupt_trial(self, number: int, run_id: str, cause: str, state: TrialState, repeat: int = 0) -> None:
        """End the run of an attempt that was stopped from outside; `state` is where that leaves the trial."""

    def supersede(self, run_id: str, by: str) -> None:
        """Say on the run of an earlier attempt which run took its place."""

    def log_best(self, counted: int, objective: float) -> None:
        """Add the best objective so far to the study's run; the step is the number of trials counted."""

    def repeats(self) -> list[Attempt]:
        """Return the runs of every attempt at a finalist's repeat, the oldest first."""


class TrackedSource(Source):
    """Work whose runs a tracker keeps, nested under a study's run."""

    tracker: Tracker
    checkpoints: Checkpoints | None = None

    def name_run(self, spec: TrialSpec, epochs: Sequence[Epoch] = ()) -> None:
        """Keep the run of an attempt that is about to begin, and what was trained of it before."""

    def begin(self, spec: TrialSpec) -> TrialSpec:
        """Open the run of an attempt.

        Where there is a checkpoint of an earlier one it is that one's run, in which the attempt goes on. Else that says
        which run took its place.
        """
        if spec.supersedes is not None and self.checkpoints is not None:
            earlier = replace(spec, run_id=spec.supersedes, supersedes=None)
            if (header := self.checkpoints.find(earlier)) is not None:
                spec = replace(earlier, resumes=header.epochs[-1].epoch)
                self.name_run(spec, header.epochs[spec.inherited :])
                self.tracker.resume_trial(spec, header.epochs[spec.inherited :])
                return spec
        tags = {"seed": str(spec.seed), "precision": spec.precision.value}
        if spec.continues is not None:
            tags["continues_trial"] = str(spec.continues.number)
            if spec.continues.run_id is not None:
                tags["continues_run"] = spec.continues.run_id
            tags["earlier_seeds"] = " ".join(f"{seed}:{last}" for seed, last in spec.continues.seeds)
        params = spec.hyperparameters.model_dump()
        run_id = self.tracker.open_trial(spec.number, spec.attempt, params, tags, spec.repeat)
        spec = replace(spec, run_id=run_id)
        self.name_run(spec)
        if spec.supersedes is not None:
            self.tracker.supersede(spec.supersedes, run_id)
        return spec

    def reached(self, spec: TrialSpec) -> int:
        """Return the epoch after which the next attempt can go on, 0 where it would begin anew."""
        return 0 if self.checkpoints is None else self.checkpoints.reached(spec)

    def discard_checkpoint(self, spec: TrialSpec) -> None:
        """Delete the checkpoint of a training that needs it no more, or cannot use it."""
        if self.checkpoints is not None:
            self.checkpoints.discard(spec.label)

    def log_epochs(self, spec: TrialSpec, *reports: EpochReport) -> None:
        """Add epochs to the run's curves."""
        self.tracker.log_epochs(spec.run_id, *reports)

    def record(self, spec: TrialSpec, result: TrialResult) -> None:
        """Log the result in one batch, a quarter of what it takes to settle it."""
        self.tracker.record_result(spec, result)

    def log_loss(self, spec: TrialSpec, cause: str, state: TrialState) -> None:
        """End the run of an attempt that was lost or stopped."""
        self.tracker.interrupt_trial(spec.number, spec.run_id, cause, state, spec.repeat)
