"""The seam between the coordinator and whatever proposes hyperparameters."""

from dataclasses import dataclass
from typing import Protocol

from fashion_study.trial import Checkpoint, ParamValue, TrialResult


@dataclass(frozen=True)
class Proposal:
    """Ask for one attempt at a trial. `attempt` counts from 1; `superseded_run_id` is the run of the last one.

    With `continues` the trial goes on from an earlier one's model.
    """

    number: int
    attempt: int
    params: dict[str, ParamValue]
    superseded_run_id: str | None = None
    continues: Checkpoint | None = None


@dataclass(frozen=True)
class Wait:
    """Say that nothing can be proposed before a running trial has ended."""


@dataclass(frozen=True)
class Exhausted:
    """Say that nothing is left to propose, and why."""

    reason: str


class Engine(Protocol):
    """Propose trials and learn from them."""

    def ask(self) -> Proposal | Wait | Exhausted:
        """Return the next trial; one that an interruption sent back to waiting comes first."""
        ...

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Take the objective after `epoch` (from 1) and return whether the trial should be pruned now."""
        ...

    def tell(self, result: TrialResult) -> None:
        """Record for good how a trial ended."""
        ...
