"""In-memory twins of the seams, so that the loop is tested without MLflow, processes and TensorFlow."""

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from fashion_study.executors.executor import Event
from fashion_study.tracking.tracker import RepeatRun
from fashion_study.trial import (
    AttemptLost,
    EpochReport,
    FailReason,
    Hyperparameters,
    Precision,
    ProbeResult,
    TrialResult,
    TrialSpec,
    TrialState,
)

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

Key = tuple[int, int]
PROBED = ProbeResult(Precision.FLOAT32, {"float32": 7_500.0, "bfloat16": 700.0})


class SimulatedOutcome(StrEnum):
    """Say what becomes of an attempt after its first epoch; without a fate it goes on to its end."""

    LOST = "lost"
    ERROR = "error"
    DIVERGED = "diverged"
    TIMEOUT = "timeout"
    OOM = "oom"
    STUCK = "stuck"


def memory_storage() -> "RDBStorage":
    """Open an empty storage that ends with the test."""
    from optuna.storages import RDBStorage

    # Optuna's own in-memory storage never looks again at a trial that was running and waits now.
    return RDBStorage("sqlite:///:memory:")


def toy_accuracy(params: Hyperparameters, epoch: int) -> float:
    """Rise with each epoch towards a height (below 1) that the learning rate and the filters decide."""
    height = 0.95 - 0.02 * (math.log10(params.learning_rate) + 3) ** 2 - 0.001 * abs(params.filters_1 - 32)
    return max(0.0, height) * (1 - 0.5**epoch)


def toy_report(spec: TrialSpec, epoch: int) -> EpochReport:
    """Report the toy objective after `epoch`."""
    accuracy = toy_accuracy(spec.hyperparameters, epoch)
    return EpochReport(*spec.key, epoch, 1 - accuracy, accuracy, 1.1 - accuracy, accuracy, 0.5, 1000.0)


def toy_result(spec: TrialSpec, state: TrialState, epochs: int, reason: FailReason | None = None) -> TrialResult:
    """End an attempt after `epochs`."""
    if state is not TrialState.COMPLETE:
        return TrialResult(*spec.key, state, epochs, reason=reason, message="toy" if reason else "")
    return TrialResult(*spec.key, state, epochs, objective=toy_accuracy(spec.hyperparameters, epochs))


def toy_training(
    spec: TrialSpec, fate: SimulatedOutcome | None
) -> Generator[EpochReport, bool | None, TrialResult | SimulatedOutcome]:
    """Yield a report for each epoch, take whether to prune, and return the result; LOST and STUCK as they are."""
    done = 0 if spec.continues is None else spec.continues.epochs
    for epoch in range(done + 1, spec.hyperparameters.epochs + 1):
        if (yield toy_report(spec, epoch)):
            return toy_result(spec, TrialState.PRUNED, epoch)
        match fate:
            case SimulatedOutcome.LOST | SimulatedOutcome.STUCK:
                return fate
            case SimulatedOutcome.ERROR | SimulatedOutcome.DIVERGED | SimulatedOutcome.TIMEOUT | SimulatedOutcome.OOM:
                return toy_result(spec, TrialState.FAILED, epoch, FailReason(fate.value))
    return toy_result(spec, TrialState.COMPLETE, spec.hyperparameters.epochs)


@dataclass
class _Attempt:
    spec: TrialSpec
    training: Generator[EpochReport, bool | None, TrialResult | SimulatedOutcome]
    is_ready: bool = True
    verdict: bool | None = None


class MemoryExecutor:
    """Train the toy objective, one epoch of each running attempt whenever the caller has time to wait."""

    def __init__(
        self, slots: int = 1, fates: Mapping[Key, SimulatedOutcome] | None = None, journal: list[str] | None = None
    ) -> None:
        self._slots = slots
        self._fates = fates or {}
        self._attempts: dict[Key, _Attempt] = {}
        self._journal = [] if journal is None else journal
        self.submitted: list[TrialSpec] = []
        self.late: list[Event] = []
        self.epochs = 0
        self.most_at_once = 0
        self.is_stopped = False

    @property
    def slots(self) -> int:
        """Return how many attempts can run at once."""
        return self._slots

    def probe_precision(self, is_over: Callable[[], bool] = lambda: False) -> ProbeResult | None:
        """Answer with figures that nobody measured."""
        return None if is_over() else PROBED

    def submit(self, spec: TrialSpec) -> None:
        """Begin an attempt; the caller has seen to it that a slot is free."""
        assert not self.is_stopped
        assert len(self._attempts) < self._slots
        self._attempts[spec.key] = _Attempt(spec, toy_training(spec, self._fates.get(spec.key)))
        self.submitted.append(spec)
        self.most_at_once = max(self.most_at_once, len(self._attempts))
        self._journal.append(f"submit {spec.number}/{spec.attempt}")

    def wait(self, timeout: float) -> list[Event]:
        """Return what is in `late`, and after some time the next message of every attempt that waits for no answer."""
        events, self.late = self.late, []
        for attempt in list(self._attempts.values()):
            if attempt.is_ready and timeout > 0:
                events += self._step(attempt)
        return events

    def answer(self, report: EpochReport, *, prune: bool) -> None:
        """Answer an epoch's report; the attempt goes on, or ends there as pruned."""
        attempt = self._attempts[report.number, report.attempt]
        attempt.verdict, attempt.is_ready = prune, True
        self._journal.append(f"answer {report.number}/{report.attempt} epoch {report.epoch}")

    def stop(self) -> None:
        """Forget every attempt."""
        self._attempts.clear()
        self.is_stopped = True

    def _step(self, attempt: _Attempt) -> list[Event]:
        attempt.is_ready = False
        try:
            report = attempt.training.send(attempt.verdict)
        except StopIteration as end:
            return self._end(attempt.spec, end.value)
        self.epochs += 1
        return [report]

    def _end(self, spec: TrialSpec, end: TrialResult | SimulatedOutcome) -> list[Event]:
        if end is SimulatedOutcome.STUCK:
            return []
        del self._attempts[spec.key]
        return [end if isinstance(end, TrialResult) else AttemptLost(*spec.key, "signal SIGKILL")]


class ComingAndGoing(MemoryExecutor):
    """Have no worker until the caller has waited five times, and none for as long after each loss."""

    absent = 5

    @property
    def slots(self) -> int:
        """Return how many attempts can run at once."""
        return 0 if self.absent > 0 else super().slots

    def wait(self, timeout: float) -> list[Event]:
        """Return what has happened; a worker may have come or gone."""
        self.absent -= 1
        events = super().wait(timeout)
        if any(isinstance(event, AttemptLost) for event in events):
            self.absent = 5
        return events


class FailingStore(MemoryExecutor):
    """Blame the store for every attempt that is lost."""

    def _end(self, spec: TrialSpec, end: TrialResult | SimulatedOutcome) -> list[Event]:
        return [
            replace(event, by_store=True) if isinstance(event, AttemptLost) else event
            for event in super()._end(spec, end)
        ]


@dataclass
class MemoryRun:
    """Hold what a tracking store would show of one attempt's run."""

    number: int
    attempt: int
    params: dict[str, object]
    tags: dict[str, str]
    status: str = "RUNNING"
    epochs: list[EpochReport] = field(default_factory=list)
    result: TrialResult | None = None
    cause: str = ""
    superseded_by: str | None = None
    repeat: int = 0


class MemoryTracker:
    """Keep runs by their ids, `run-NUMBER-ATTEMPT`, and write what happens into `journal`."""

    def __init__(self, journal: list[str] | None = None) -> None:
        self._journal = [] if journal is None else journal
        self.runs: dict[str, MemoryRun] = {}
        self.best: list[tuple[int, float]] = []

    def open_trial(
        self, number: int, attempt: int, params: Mapping[str, object], tags: Mapping[str, str], repeat: int = 0
    ) -> str:
        """Open a run for an attempt and return its id."""
        run_id = f"run-{number}-repeat-{repeat}-{attempt}" if repeat else f"run-{number}-{attempt}"
        assert run_id not in self.runs
        self.runs[run_id] = MemoryRun(number, attempt, dict(params), dict(tags), repeat=repeat)
        return run_id

    def repeats(self) -> list[RepeatRun]:
        """Return the runs of the finalists' repeats, the oldest first."""
        status = {"complete": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "RUNNING": "RUNNING"}
        return [
            RepeatRun(
                run.number,
                run.repeat,
                run.attempt,
                run_id,
                status[run.status],
                run.result.objective if run.result else None,
            )
            for run_id, run in self.runs.items()
            if run.repeat
        ]

    def log_epoch(self, run_id: str, report: EpochReport) -> None:
        """Add one epoch to a run."""
        self._running(run_id).epochs.append(report)
        self._journal.append(f"log {report.number}/{report.attempt} epoch {report.epoch}")

    def record_result(self, spec: TrialSpec, result: TrialResult) -> None:
        """Keep a result with its run, which stays open."""
        self._running(spec.run_id).result = result
        self._journal.append(f"record {spec.number}/{spec.attempt}")

    def close_trial(self, spec: TrialSpec, result: TrialResult) -> None:
        """End a run with its result."""
        run = self._running(spec.run_id)
        run.status, run.result = result.state.value, result
        self._journal.append(f"close {spec.number}/{spec.attempt}")

    def interrupt_trial(self, number: int, run_id: str, cause: str, state: TrialState) -> None:
        """End the run of an attempt that was stopped from outside."""
        run = self._running(run_id)
        assert run.number == number
        run.status, run.cause = "failed" if state is TrialState.FAILED else "interrupted", cause

    def supersede(self, run_id: str, by: str) -> None:
        """Say on the run of an earlier attempt which run took its place."""
        self.runs[run_id].superseded_by = by

    def log_best(self, counted: int, objective: float) -> None:
        """Note the best objective so far."""
        self.best.append((counted, objective))

    def _running(self, run_id: str) -> MemoryRun:
        assert self.runs[run_id].status == "RUNNING"
        return self.runs[run_id]


@dataclass
class RecordingObserver:
    """Remember what a person would have been shown."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    started: list[Key] = field(default_factory=list)
    epochs: list[tuple[int, int, int]] = field(default_factory=list)
    closed: list[tuple[int, TrialState, tuple[int, float] | None]] = field(default_factory=list)
    lost: list[tuple[Key, str, TrialState]] = field(default_factory=list)

    def begin(self, title: str, counted: int, total: int, what: str = "trials") -> None:
        """Remember what begins."""
        self.note(f"{title}: {counted} of {total} {what}")

    def note(self, text: str) -> None:
        """Remember a line."""
        self.notes.append(text)

    def warn(self, text: str) -> None:
        """Remember a line."""
        self.warnings.append(text)

    def trial_started(self, spec: TrialSpec) -> None:
        """Remember an attempt."""
        self.started.append(spec.key)

    def epoch_done(self, spec: TrialSpec, report: EpochReport) -> None:
        """Remember an epoch."""
        self.epochs.append((*spec.key, report.epoch))

    def trial_closed(self, spec: TrialSpec, result: TrialResult, best: tuple[int, float] | None) -> None:
        """Remember how a trial ended."""
        self.closed.append((spec.number, result.state, best))

    def trial_lost(self, spec: TrialSpec, cause: str, state: TrialState) -> None:
        """Remember an attempt that was stopped from outside."""
        self.lost.append((spec.key, cause, state))
