"""What a replay shows: the figures side by side, and a verdict."""

from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fashion_study.replay.comparison import Difference, Figure, Line, Replay

SHOWN = ("val_accuracy", "val_loss")
NAMED = ("end", "objective", "weights")


def show_replay(replay: Replay, console: Console) -> None:
    """Print the epochs and the end, recorded and again, then whether they are the same and what is not."""
    console.print(_table(replay))
    first = replay.first_difference
    style = "bold green" if first is None else "bold red"
    console.print(Text(_verdict(replay), style=style), soft_wrap=True)
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


def _verdict(replay: Replay) -> str:
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
