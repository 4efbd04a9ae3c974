"""In-memory twin of the progress display."""

from dataclasses import dataclass, field

from fashion_study.study.progress import Observer
from fashion_study.testing.training import Key
from fashion_study.trial import EpochReport, TrialResult, TrialSpec, TrialState


@dataclass
class RecordingObserver(Observer):
    """In-memory twin of the progress display: what a person would have seen, as lists."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    started: list[Key] = field(default_factory=list)
    epochs: list[tuple[int, int, int]] = field(default_factory=list)
    closed: list[tuple[int, TrialState, tuple[int, float] | None]] = field(default_factory=list)
    lost: list[tuple[Key, str, TrialState]] = field(default_factory=list)

    def begin(self, title: str, counted: int, total: int, what: str = "trials") -> None:
        """Record what begins."""
        self.note(f"{title}: {counted} of {total} {what}")

    def note(self, text: str) -> None:
        """Record a line."""
        self.notes.append(text)

    def warn(self, text: str) -> None:
        """Record a line."""
        self.warnings.append(text)

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
