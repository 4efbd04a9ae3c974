"""In-memory twin of the tracker that writes runs to MLflow."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fashion_study.tracking.attempt import Attempt
from fashion_study.trial import EpochReport, TrialResult, TrialSpec, TrialState


@dataclass
class MemoryRun:
    """In-memory twin of an attempt's MLflow run."""

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
    """In-memory twin of the tracker: runs by their ids, `run-NUMBER-ATTEMPT`, and each write as a line of `journal`."""

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
        """Tag the run of an earlier attempt with the run that replaces it."""
        self.runs[run_id].superseded_by = by

    def log_best(self, counted: int, objective: float) -> None:
        """Record the best objective so far."""
        self.best.append((counted, objective))

    def _running(self, run_id: str) -> MemoryRun:
        assert self.runs[run_id].status == "RUNNING"
        return self.runs[run_id]
