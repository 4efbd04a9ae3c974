"""A recorded training and the same one again, figure by figure."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fashion_study.replay.again import Again
from fashion_study.replay.recorded import CURVES, ENVIRONMENT, Recorded, environment_here
from fashion_study.trial import CONTINUATION_LOST, FailReason, TrialState

# The objective has a line of its own; the others say how fast the machine was.
LEFT_OUT = {"objective", "train_seconds", "ms_per_image"}

Figure = float | str | None


@dataclass(frozen=True)
class Line:
    """Show one figure, recorded and again; `epoch` is None for what a training leaves in the end."""

    epoch: int | None
    name: str
    recorded: Figure
    again: Figure

    @property
    def is_same(self) -> bool:
        """Say whether both are the same to the bit: floats come back from a store as they went in."""
        if isinstance(self.recorded, float) and isinstance(self.again, float) and math.isnan(self.recorded):
            return math.isnan(self.again)
        return self.recorded == self.again


@dataclass(frozen=True)
class Difference:
    """Name something in which the environment then and the one here are not the same; None: not recorded."""

    what: str
    then: str | None
    here: str | None


@dataclass(frozen=True)
class Replay:
    """Show a training compared with itself. `lines` are in the order in which the figures came up."""

    label: str
    lines: tuple[Line, ...]
    differences: tuple[Difference, ...]

    @property
    def first_difference(self) -> Line | None:
        """Return the first figure that is not the same."""
        return next((line for line in self.lines if not line.is_same), None)


def compare(recorded: Recorded, again: Again) -> Replay:
    """Compare every figure but times; one that an earlier version did not record is left out."""
    lines = (*_epochs(recorded, again), *_end(recorded, again))
    return Replay(recorded.label, lines, tuple(_differences(recorded.environment, again.result.tags)))


def _epochs(recorded: Recorded, again: Again) -> Iterator[Line]:
    for epoch in sorted({*recorded.curves, *again.curves}):
        then, now = (curves.get(epoch, {}) for curves in (recorded.curves, again.curves))
        for name in CURVES:
            yield Line(epoch, name, then.get(name), now.get(name))


def _end(recorded: Recorded, again: Again) -> Iterator[Line]:
    result = again.result
    reason = FailReason.DIVERGED if recorded.state is TrialState.FAILED else None
    yield Line(
        None,
        "end",
        _ending(recorded.state, reason, recorded.epochs_run),
        _ending(result.state, result.reason, result.epochs_run),
    )
    if TrialState.COMPLETE in (recorded.state, result.state):
        yield Line(None, "objective", recorded.metrics.get("objective"), result.objective)
    for name in sorted(result.metrics.keys() & recorded.metrics.keys() - LEFT_OUT):
        yield Line(None, name, recorded.metrics[name], float(result.metrics[name]))
    if recorded.weights is not None:
        yield Line(None, "weights", recorded.weights, result.tags.get("weights_sha256"))


def _ending(state: TrialState, reason: FailReason | None, epochs: int) -> str:
    return f"{reason or state} after {epochs} epoch{'' if epochs == 1 else 's'}"


def _differences(then: Mapping[str, str], worker: Mapping[str, str]) -> Iterator[Difference]:
    if (lost := worker.get(CONTINUATION_LOST)) is not None:
        yield Difference("the model to go on from", "there", f"gone ({lost})")
    here = environment_here(worker)
    for name, what in ENVIRONMENT.items():
        if then.get(name) != here.get(name):
            yield Difference(what, then.get(name), here.get(name))
