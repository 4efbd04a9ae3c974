"""A recorded training and the same one again, figure by figure, and what a user is shown of it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fashion_study.replay.again import Again
from fashion_study.replay.recorded import CURVES, ENVIRONMENT, Recorded, environment_here
from fashion_study.trial import CONTINUATION_LOST, FailReason, TrialState

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


@dataclass(frozen=True)
class Difference:
    """A property that the environment then and the one here do not share; None: not recorded."""

    what: str
    then: str | None
    here: str | None


@dataclass(frozen=True)
class Replay:
    """A training compared with its repetition. `lines` are in the order of the training."""

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


def show_replay(replay: Replay, console: Console) -> None:
    """Print the epochs and the end, recorded and again, then whether they are the same and what is not."""
    console.print(_table(replay))
    first = replay.first_difference
    style = "bold green" if first is None else "bold red"
    console.print(Text(_conclusion(replay), style=style), soft_wrap=True)
    for line in _environment(replay):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(replay: Replay) -> Table:
    table = Table(
        title=f"{replay.label}, validation accuracy and loss",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("", "recorded", "again", "same to the bit"):
        table.add_column(heading, overflow="fold")
    for epoch, lines in groupby(replay.lines, key=lambda line: line.epoch):
        if epoch is not None:
            _add_row(table, f"epoch {epoch}", list(lines), SHOWN)
            continue
        end = list(lines)
        for line in end:
            if line.name in NAMED:
                _add_row(table, line.name, [line], NAMED)
        _add_row(table, "other figures", [line for line in end if line.name not in NAMED], ())
    return table


def _add_row(table: Table, what: str, lines: list[Line], shown: tuple[str, ...]) -> None:
    different = [line.name for line in lines if not line.is_same]
    same = Text("no: " + ", ".join(different), style="red") if different else Text("yes", style="green")
    then, again = (
        "  ".join(_short(getattr(line, side)) for line in sorted(lines, key=_place) if line.name in shown)
        for side in ("recorded", "again")
    )
    table.add_row(what, then, again, same)


def _place(line: Line) -> int:
    return SHOWN.index(line.name) if line.name in SHOWN else 0


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


def _environment(replay: Replay) -> list[str]:
    changed = [difference for difference in replay.differences if difference.then is not None]
    unknown = [difference.what for difference in replay.differences if difference.then is None]
    lines = [_described(difference) for difference in changed]
    if not changed and replay.first_difference is not None:
        lines.append("Nothing that is recorded of its environment is different here.")
    if unknown:
        lines.append(f"Not recorded, so nothing can be said of: {', '.join(unknown)}.")
    return lines


def _described(difference: Difference) -> str:
    return f"Different here: {difference.what}, {difference.then} then, {difference.here or 'unknown'} now."
