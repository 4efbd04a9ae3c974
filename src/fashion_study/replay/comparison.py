"""A recorded training and the same one again, figure by figure, and what a user is shown of it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fashion_study.replay.recorded import CURVES, ENVIRONMENT, Curves, Recorded
from fashion_study.tracking.runs import provenance
from fashion_study.trial import (
    CONTINUATION_LOST,
    ENVIRONMENT_CHANGED,
    TRAINING_VERSION,
    FailReason,
    TrialResult,
    TrialState,
)

# The objective has a line of its own; the others say how fast the machine was.
LEFT_OUT = {"objective", "train_seconds", "ms_per_image"}
# Shown side by side: of each epoch, and of the end.
SHOWN = ("val_accuracy", "val_loss")
NAMED = ("end", "objective", "weights")

Figure = float | str | None


@dataclass(frozen=True)
class Line:
    """One figure, recorded and again; `epoch` is None for a figure of the end."""

    epoch: int | None
    name: str
    recorded: Figure
    again: Figure

    @property
    def is_same(self) -> bool:
        """Return whether both are the same to the bit: a store returns floats as they were logged."""
        if isinstance(self.recorded, float) and isinstance(self.again, float) and math.isnan(self.recorded):
            return math.isnan(self.again)
        return self.recorded == self.again

    @property
    def row(self) -> str:
        """Return the row of the table that it belongs to."""
        if self.epoch is not None:
            return f"epoch {self.epoch}"
        return self.name if self.name in NAMED else "other figures"


@dataclass(frozen=True)
class Replay:
    """A training compared with its repetition: `lines` in the order of the training, `remarks` on the environment."""

    label: str
    lines: tuple[Line, ...]
    remarks: tuple[str, ...]

    @property
    def first_difference(self) -> Line | None:
        """Return the first figure that is not the same."""
        return next((line for line in self.lines if not line.is_same), None)


def compare(recorded: Recorded, curves: Curves, result: TrialResult) -> Replay:
    """Compare every figure but times; one that an earlier version did not record is left out."""
    epochs = (
        Line(epoch, name, recorded.curves.get(epoch, {}).get(name), curves.get(epoch, {}).get(name))
        for epoch in sorted({*recorded.curves, *curves})
        for name in CURVES
    )
    lines = (*epochs, *_end(recorded, result))
    remarks = _remarks(recorded.environment, result.tags, is_same=all(line.is_same for line in lines))
    return Replay(recorded.label, lines, tuple(remarks))


def _end(recorded: Recorded, result: TrialResult) -> Iterator[Line]:
    reason = FailReason.DIVERGED if recorded.state is TrialState.FAILED else None
    then, now = (
        _ending(recorded.state, reason, recorded.epochs_run),
        _ending(result.state, result.reason, result.epochs_run),
    )
    yield Line(None, "end", then, now)
    if TrialState.COMPLETE in (recorded.state, result.state):
        yield Line(None, "objective", recorded.metrics.get("objective"), result.objective)
    if (weights := recorded.environment.get("weights_sha256")) is not None:
        yield Line(None, "weights", weights, result.tags.get("weights_sha256"))
    for name in sorted(result.metrics.keys() & recorded.metrics.keys() - LEFT_OUT):
        yield Line(None, name, recorded.metrics[name], float(result.metrics[name]))


def _ending(state: TrialState, reason: FailReason | None, epochs: int) -> str:
    return f"{reason or state} after {epochs} epoch{'' if epochs == 1 else 's'}"


def _remarks(then: Mapping[str, str], worker: Mapping[str, str], *, is_same: bool) -> Iterator[str]:
    """Describe how the environment then differs from the one here, and what is not recorded of it."""
    changed = []
    if CONTINUATION_LOST in worker:
        changed.append(("the model to go on from", "there", f"gone ({worker[CONTINUATION_LOST]})"))
    here = provenance() | {"training_version": str(TRAINING_VERSION)} | dict(worker)
    differing = {name: what for name, what in ENVIRONMENT.items() if then.get(name) != here.get(name)}
    changed += [(what, then[name], here.get(name, "unknown")) for name, what in differing.items() if name in then]
    if (change := then.get(ENVIRONMENT_CHANGED)) is not None:
        yield f"It was stopped, and went on where something was different: {change}."
    for what, before, now in changed:
        yield f"Different here: {what}, {before} then, {now} now."
    if not changed and not is_same:
        yield "Nothing that is recorded of its environment is different here."
    if unknown := [what for name, what in differing.items() if name not in then]:
        yield f"Not recorded, so nothing can be said of: {', '.join(unknown)}."


def show_replay(replay: Replay, console: Console) -> None:
    """Print the epochs and the end, recorded and again, then whether they are the same and what is not."""
    title = f"{replay.label}, validation accuracy and loss"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "recorded", "again", "same to the bit"):
        table.add_column(heading, overflow="fold")
    for what, group in groupby(replay.lines, key=lambda line: line.row):
        lines = {line.name: line for line in group}
        different = [name for name, line in lines.items() if not line.is_same]
        same = Text("no: " + ", ".join(different), style="red") if different else Text("yes", style="green")
        shown = [lines[name] for name in (*SHOWN, *NAMED) if name in lines]
        then, again = ("  ".join(_short(getattr(line, side)) for line in shown) for side in ("recorded", "again"))
        table.add_row(what, then, again, same)
    console.print(table)
    style = "bold green" if replay.first_difference is None else "bold red"
    console.print(Text(_conclusion(replay), style=style), soft_wrap=True)
    for remark in replay.remarks:
        console.print(remark, markup=False, highlight=False, soft_wrap=True)


def _short(value: Figure) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return "none" if value is None else value[:24]


def _conclusion(replay: Replay) -> str:
    first = replay.first_difference
    label = f"{replay.label[0].upper()}{replay.label[1:]}"
    if first is None:
        return f"{label} is the same to the bit: {len(replay.lines)} of {len(replay.lines)} figures."
    same = sum(line.is_same for line in replay.lines)
    where = "in the end" if first.epoch is None else f"in epoch {first.epoch}"
    return (
        f"{label} is not the same: {same} of {len(replay.lines)} figures are. The first that differs, {where}, is "
        f"{first.name}: {first.recorded} recorded, {first.again} again."
    )
