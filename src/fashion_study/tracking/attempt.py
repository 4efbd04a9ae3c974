"""An attempt at a trial, as its MLflow run shows it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError

from fashion_study.errors import DamagedModelError
from fashion_study.text import shown
from fashion_study.trial import FailReason, Hyperparameters, TrialResult, TrialState

if TYPE_CHECKING:
    from mlflow.entities import Run

ORPHAN = "orphan"
# Digits of a number in a tag: Python refuses to read thousands of them, and anybody can write a tag.
LONGEST_NUMBER = 10
# The trial of a run that does not say of which it is.
NO_TRIAL = -1
RUN_STATUS = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAILED: "FAILED",
    TrialState.PAUSED: "SCHEDULED",
}


@dataclass(frozen=True)
class Attempt:
    """The run of one attempt at a trial, or at a finalist's repeat (from 1; 0 is the trial itself).

    `status` is MLflow's, `state` the run's own tag; `seconds` is None for a run that has not ended.
    """

    run_id: str
    trial: int
    repeat: int
    number: int
    status: str
    state: str = ""
    started: int = 0
    seconds: float | None = None
    epochs_run: int = 0
    objective: float | None = None
    reason: FailReason | None = None
    cause: str = ""
    superseded_by: str | None = None
    is_orphan: bool = False
    is_deleted: bool = False
    tags: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def outcome(self) -> TrialState | None:
        """Return how the attempt ended by its own evidence, which the run has in full; None where it did not."""
        if self.state == TrialState.COMPLETE and self.objective is not None:
            return TrialState.COMPLETE
        if self.state == TrialState.PRUNED:
            return TrialState.PRUNED
        return TrialState.FAILED if self.state == TrialState.FAILED and self.reason is not None else None

    @property
    def is_current(self) -> bool:
        """Return whether no other run has taken this one's place."""
        return self.superseded_by is None and not self.is_orphan and not self.is_deleted

    @property
    def label(self) -> str:
        """Return what was trained: `trial 007`, `trial 007 repeat 2`."""
        return f"trial {self.trial:03d}" + (f" repeat {self.repeat}" if self.repeat else "")


def read_attempt(run: "Run") -> Attempt:
    """Read what an attempt's run says of it; a tag that is missing or altered says nothing."""
    tags, info = run.data.tags, run.info
    reason = tags.get("reason")
    return Attempt(
        run_id=info.run_id,
        trial=_number(tags.get("trial"), NO_TRIAL),
        repeat=_number(tags.get("repeat")),
        number=_number(tags.get("attempt")),
        status=info.status,
        state=tags.get("state", ""),
        started=info.start_time,
        seconds=None if info.end_time is None else (info.end_time - info.start_time) / 1000,
        epochs_run=_number(tags.get("epochs_run")),
        objective=run.data.metrics.get("objective"),
        reason=FailReason(reason) if reason in set(FailReason) else None,
        cause=tags.get("cause", ""),
        superseded_by=tags.get("superseded_by"),
        is_orphan=ORPHAN in tags,
        is_deleted=info.lifecycle_stage != "active",
        tags=tags,
    )


def hyperparameters_of(params: Mapping[str, str], owner: str) -> Hyperparameters:
    """Read the hyperparameters that a run or a model was logged with; one that is lacking has its default.

    Raises:
        DamagedModelError: a parameter was altered.
    """
    known = {name: text for name, text in params.items() if name in Hyperparameters.model_fields}
    try:
        return Hyperparameters.model_validate_strings(known)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise DamagedModelError(
            f"The {owner} was altered: its parameter {problem['loc'][0]} is {shown(problem['input'])}. "
            f"Expected the one that it was trained with ({problem['msg']}). Set it right in MLflow."
        ) from error


def run_name(result: TrialResult, repeat: int = 0) -> str:
    """Return a run's name for people who read it in a table: `012  0.913`, `007  pruned at 3`, `005  diverged`."""
    match result.state:
        case TrialState.COMPLETE:
            outcome = f"{result.objective:.4f}"
        case TrialState.PRUNED | TrialState.PAUSED:
            outcome = f"{result.state} at {result.epochs_run}"
        case _:
            outcome = str(result.reason)
    return f"{open_run_name(result.number, repeat)}  {outcome}"


def open_run_name(number: int, repeat: int = 0) -> str:
    """Return the name of a run that has not ended: `012`, `007 r2`."""
    # Short: the UI shows the first 16 letters or so.
    return f"{number:03d}" + (f" r{repeat}" if repeat else "")


def _number(text: str | None, default: int = 0) -> int:
    return int(text) if text is not None and len(text) <= LONGEST_NUMBER and text.isdecimal() else default
