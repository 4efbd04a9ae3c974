"""The seam between the coordinator and the place where the evidence is kept."""

from collections.abc import Mapping
from typing import Protocol

from fashion_study.tracking.attempt import Attempt
from fashion_study.trial import EpochReport, TrialResult, TrialSpec, TrialState


class Tracker(Protocol):
    """The runs of one study's trials, as the loop writes them."""

    def open_trial(
        self, number: int, attempt: int, params: Mapping[str, object], tags: Mapping[str, str], repeat: int = 0
    ) -> str:
        """Open a run for an attempt at a trial or at a finalist's repeat, nested under the study's; return its id."""
        ...

    def log_epoch(self, run_id: str, report: EpochReport) -> None:
        """Add one epoch to the curves of a run."""
        ...

    def record_result(self, spec: TrialSpec, result: TrialResult) -> None:
        """Log the final metrics and how the attempt ended, at once: enough to take a result over after a kill."""
        ...

    def close_trial(self, spec: TrialSpec, result: TrialResult) -> None:
        """Give the run its status and its readable name, and log the result where that is not done yet."""
        ...

    def interrupt_trial(self, number: int, run_id: str, cause: str, state: TrialState) -> None:
        """End the run of an attempt that was stopped from outside; `state` is where that leaves the trial."""
        ...

    def supersede(self, run_id: str, by: str) -> None:
        """Say on the run of an earlier attempt which run took its place."""
        ...

    def log_best(self, counted: int, objective: float) -> None:
        """Add the best objective so far to the study's run; the step is the number of trials counted."""
        ...


class RepeatTracker(Tracker, Protocol):
    """The runs of the finalists' repeats as well."""

    def repeats(self) -> list[Attempt]:
        """Return the runs of every attempt at a finalist's repeat, the oldest first."""
        ...
