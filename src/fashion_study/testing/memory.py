"""In-memory doubles of what a study talks to: the executor, the tracker, the trial storage, the progress display."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_study.executors.executor import Event
from fashion_study.store.checkpoints import Checkpoints, Header
from fashion_study.study.progress import Observer
from fashion_study.testing.training import Key, SimulatedOutcome, probed, toy_training
from fashion_study.tracking.attempt import Attempt
from fashion_study.trial import (
    AttemptLost,
    Epoch,
    EpochReport,
    ProbeOrder,
    ProbeResult,
    TrialResult,
    TrialSpec,
    TrialState,
)

if TYPE_CHECKING:
    from optuna.storages import RDBStorage


@dataclass
class _Attempt:
    spec: TrialSpec
    training: Generator[EpochReport, bool | None, TrialResult | SimulatedOutcome]
    is_ready: bool = True
    prune: bool | None = None


@dataclass(eq=False)
class MemoryExecutor:
    """In-memory twin of an executor: while it waits, it trains one toy epoch of each attempt that may go on."""

    slots: int = 1
    outcomes: Mapping[Key, SimulatedOutcome] = field(default_factory=dict)
    journal: list[str] = field(default_factory=list)
    submitted: list[TrialSpec] = field(default_factory=list)
    late: list[Event] = field(default_factory=list)
    epochs: int = 0
    most_at_once: int = 0
    is_stopped: bool = False
    _attempts: dict[Key, _Attempt] = field(default_factory=dict)

    def probe(self, order: ProbeOrder, is_over: Callable[[], bool] = lambda: False) -> ProbeResult | None:
        """Return invented measurements."""
        return None if is_over() else probed(order)

    def submit(self, spec: TrialSpec) -> None:
        """Begin an attempt; a slot must be free."""
        assert not self.is_stopped
        assert len(self._attempts) < self.slots
        self._attempts[spec.key] = _Attempt(spec, toy_training(spec, self.outcomes.get(spec.key)))
        self.submitted.append(spec)
        self.most_at_once = max(self.most_at_once, len(self._attempts))
        self.journal.append(f"submit {spec.number}/{spec.attempt}")

    def wait(self, timeout: float) -> list[Event]:
        """Return the events in `late` and, given time, the next message of every attempt that waits for no answer."""
        events, self.late = self.late, []
        for attempt in list(self._attempts.values()):
            if attempt.is_ready and timeout > 0:
                events += self._step(attempt)
        return events

    def answer(self, report: EpochReport, *, prune: bool) -> None:
        """Answer an epoch's report; the attempt goes on, or ends there as pruned."""
        attempt = self._attempts[report.number, report.attempt]
        attempt.prune, attempt.is_ready = prune, True
        self.journal.append(f"answer {report.number}/{report.attempt} epoch {report.epoch}")

    def close(self) -> None:
        """Forget every attempt."""
        self._attempts.clear()
        self.is_stopped = True

    def _step(self, attempt: _Attempt) -> list[Event]:
        attempt.is_ready = False
        try:
            report = attempt.training.send(attempt.prune)
        except StopIteration as stop:
            end: TrialResult | SimulatedOutcome = stop.value
            if end is SimulatedOutcome.STUCK:
                return []
            key = attempt.spec.key
            del self._attempts[key]
            return [end if isinstance(end, TrialResult) else AttemptLost(*key, "signal SIGKILL")]
        self.epochs += 1
        return [report]


@dataclass
class MemoryRun:
    """In-memory twin of an attempt's MLflow run."""

    number: int
    attempt: int
    params: dict[str, object]
    tags: dict[str, str]
    status: str = "RUNNING"
    epochs: list[Epoch] = field(default_factory=list)
    result: TrialResult | None = None
    cause: str = ""
    superseded_by: str | None = None
    repeat: int = 0


@dataclass(frozen=True)
class MemoryCheckpoints(Checkpoints):
    """In-memory twin of a study's checkpoints: of each training the epochs that `curve` has, whatever its run."""

    curve: Callable[[TrialSpec], Sequence[Epoch]]

    @classmethod
    def having(cls, curve: Callable[[TrialSpec], Sequence[Epoch]]) -> "MemoryCheckpoints":
        """Return checkpoints in no folder."""
        return cls(Path(), "", None, curve)

    def find(self, spec: TrialSpec) -> Header | None:
        """Return the header of the checkpoint of a training."""
        epochs = self.curve(spec)
        return Header({}, {}, epochs, 0, (), (0, 0)) if epochs else None

    def reached(self, spec: TrialSpec) -> int:
        """Return the epoch after which a training can go on."""
        return max((epoch.epoch for epoch in self.curve(spec)), default=0)

    def discard(self, label: str) -> None:
        """Keep it."""


@dataclass(eq=False)
class MemoryTracker:
    """In-memory twin of the tracker: runs by their ids, `run-NUMBER-ATTEMPT`, and each write as a line of `journal`."""

    journal: list[str] = field(default_factory=list)
    runs: dict[str, MemoryRun] = field(default_factory=dict)
    best: list[tuple[int, float]] = field(default_factory=list)

    def open_trial(
        self, number: int, attempt: int, params: Mapping[str, object], tags: Mapping[str, str], repeat: int = 0
    ) -> str:
        """Open a run for an attempt and return its id."""
        run_id = f"run-{number}-repeat-{repeat}-{attempt}" if repeat else f"run-{number}-{attempt}"
        assert run_id not in self.runs
        self.runs[run_id] = MemoryRun(number, attempt, dict(params), dict(tags), repeat=repeat)
        return run_id

    def repeats(self) -> list[Attempt]:
        """Return the runs of the finalists' repeats, the oldest first."""
        status = {"complete": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "RUNNING": "RUNNING"}
        return [
            Attempt(
                run_id,
                run.number,
                run.repeat,
                run.attempt,
                status[run.status],
                objective=run.result.objective if run.result else None,
            )
            for run_id, run in self.runs.items()
            if run.repeat
        ]

    def resume_trial(self, spec: TrialSpec, epochs: Sequence[Epoch]) -> None:
        """Open the run of an earlier attempt again, and add the epochs that it lacks."""
        run = self.runs[spec.run_id]
        run.status, run.attempt = "RUNNING", spec.attempt
        run.epochs += epochs[len(run.epochs) :]

    def log_epochs(self, run_id: str, *epochs: Epoch) -> None:
        """Add epochs to a run."""
        run = self._running(run_id)
        run.epochs += epochs
        self.journal.append(f"log {run.number}/{run.attempt} epoch {' '.join(str(epoch.epoch) for epoch in epochs)}")

    def record_result(self, spec: TrialSpec, result: TrialResult) -> None:
        """Keep a result with its run, which stays open."""
        self._running(spec.run_id).result = result
        self.journal.append(f"record {spec.number}/{spec.attempt}")

    def close_trial(self, spec: TrialSpec, result: TrialResult) -> None:
        """End a run with its result."""
        run = self.runs[spec.run_id]
        assert run.status in ("RUNNING", TrialState.PAUSED.value)
        run.status, run.result = result.state.value, result
        self.journal.append(f"close {spec.number}/{spec.attempt}")

    def interrupt_trial(self, number: int, run_id: str, cause: str, state: TrialState, repeat: int = 0) -> None:
        """End the run of an attempt that was stopped from outside."""
        run = self._running(run_id)
        assert (run.number, run.repeat) == (number, repeat)
        run.status, run.cause = "failed" if state is TrialState.FAILED else "interrupted", cause

    def supersede(self, run_id: str, by: str) -> None:
        """Tag the run of an earlier attempt with the run that replaces it."""
        self.runs[run_id].superseded_by = by

    def log_best(self, counted: int, objective: float) -> None:
        """Record the best objective so far."""
        self.best.append((counted, objective))

    def _running(self, run_id: str) -> MemoryRun:
        assert self.runs[run_id].status == "RUNNING"
        return self.runs[run_id]


@dataclass
class RecordingObserver(Observer):
    """In-memory twin of the progress display: what a person would have seen, as lists."""

    notes: list[str] = field(default_factory=list)
    expected: list[int] = field(default_factory=list)
    started: list[Key] = field(default_factory=list)
    epochs: list[tuple[int, int, int]] = field(default_factory=list)
    closed: list[tuple[int, TrialState, tuple[int, float] | None]] = field(default_factory=list)
    lost: list[tuple[Key, str, TrialState]] = field(default_factory=list)

    def begin(self, title: str, counted: int, total: int, what: str = "trials") -> None:
        """Record what begins."""
        self.note(f"{title}: {counted} of {total} {what}")

    def expect(self, total: int) -> None:
        """Record another total."""
        self.expected.append(total)

    def note(self, text: str) -> None:
        """Record a line."""
        self.notes.append(text)

    def warn(self, text: str) -> None:
        """Record a line."""
        self.notes.append(text)

    def trial_started(self, spec: TrialSpec) -> None:
        """Record an attempt."""
        self.started.append(spec.key)

    def epoch_done(self, spec: TrialSpec, report: EpochReport) -> None:
        """Record an epoch."""
        self.epochs.append((*spec.key, report.epoch))

    def trial_closed(self, spec: TrialSpec, result: TrialResult, best: tuple[int, float] | None) -> None:
        """Record how a trial ended."""
        self.closed.append((spec.number, result.state, best))

    def trial_lost(self, spec: TrialSpec, cause: str, state: TrialState) -> None:
        """Record an attempt that was stopped from outside."""
        self.lost.append((spec.key, cause, state))


def memory_storage() -> "RDBStorage":
    """Open an empty Optuna storage that ends with the process."""
    from optuna.storages import RDBStorage

    # Optuna's own in-memory storage never looks again at a trial that was running and waits now.
    return RDBStorage("sqlite:///:memory:")
