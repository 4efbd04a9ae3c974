"""The summary of a study that has ended: the ranking, the best trial against the baseline, what to do next."""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from signal import Signals

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fashion_study.data.catalog import PREFERRED
from fashion_study.database_url import VARIABLE
from fashion_study.study.finalists import choose
from fashion_study.study.progress import duration
from fashion_study.study.run import StudyResult
from fashion_study.text import printable
from fashion_study.trial import FailReason, TrialState

SHOWN = 12
MORE_TRIALS = 20
# So much of a heading is always shown.
SHORTEST_HEADING = 4
STOPPED_BY = {Signals.SIGINT: "Ctrl-C", Signals.SIGTERM: "SIGTERM", Signals.SIGHUP: "SIGHUP, a closed terminal"}


def summarise(result: StudyResult, console: Console) -> None:
    """Print the summary of a study."""
    console.print()
    for table in (*_ranking(result, console.width), *_finalists(result, console.width)):
        console.print(table)
    if result.finalists:
        console.print(
            "lower bound of the mean: one-sided 95 %, pooled Student's t; the highest one wins\n", highlight=False
        )
    told = (_failed, _comparison, _ending, _registered, _where_next)
    for line in (line for tell in told for line in tell(result)):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _ranking(result: StudyResult, width: int) -> list[Table]:
    fallback = f"  (FALLBACK, not {PREFERRED.title})" if result.source.is_fallback else ""
    left_out = len(result.records) - SHOWN
    columns = _columns(result.records[0].params if result.records else ())
    headings = ("rank", "trial", "val accuracy", "state", *columns, "epochs", "time")
    rows = []
    for rank, record in enumerate(result.records[:SHOWN], start=1):
        values = ["-".join(_short(record.params.get(name, "")) for name in names) for names in columns.values()]
        row = (
            str(rank),
            f"{record.number:03d}",
            _score(record.value),
            str(record.reason or record.state),
            *values,
            f"{record.reached}" + (f" of {record.params['epochs']}" if "epochs" in record.params else ""),
            "" if record.seconds is None else duration(record.seconds),
        )
        rows.append((row, record is result.best))
    tables = _tables(f"{result.name} on {result.source.name}{fallback}", headings, rows, width)
    tables[-1].caption = f"and {left_out} more in the MLflow UI" if left_out > 0 else None
    return tables


def _finalists(result: StudyResult, width: int) -> list[Table]:
    if not result.finalists:
        return []
    headings = ("trial", "first score", "repeats", "mean", "lower bound")
    rows = []
    first = {record.number: record.objective for record in result.records}
    winner = choose(result.finalists)
    for finalist in result.finalists:
        row = (
            f"{finalist.trial:03d}",
            _score(first.get(finalist.trial)),
            "  ".join(map(_score, finalist.objectives)),
            _score(finalist.mean),
            _score(finalist.lower_bound),
        )
        rows.append((row, finalist is winner))
    return _tables("finalists, trained again with other seeds", headings, rows, width)


def _tables(title: str, headings: Sequence[str], rows: Sequence[tuple[Sequence[str], bool]], width: int) -> list[Table]:
    """Lay out rows, each with whether it is the best one, so that no number is cut where the terminal is narrow."""
    blocks, widths = _layout(headings, [cells for cells, _ in rows], width)
    tables: list[Table] = []
    for block in blocks:
        table = Table(title=None if tables else title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.title_justify = table.caption_justify = "left"
        for index in block:
            heading = Text(headings[index].replace(" ", "\n"), no_wrap=True, overflow="ellipsis")
            table.add_column(heading, justify="right", width=widths[index])
        for cells, is_best in rows:
            table.add_row(*(cells[index] for index in block), style="bold" if is_best else None)
        tables.append(table)
    return tables


def _layout(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> tuple[list[list[int]], list[int]]:
    """Return the columns of each table, and every column's width.

    Headings are cut first, then the time and the state are left out; what is still too wide goes on in another table.
    """
    cells = [[row[index] for row in rows] for index in range(len(headings))]
    whole = [max(map(len, (*heading.split(), *column))) for heading, column in zip(headings, cells, strict=True)]
    shown = list(range(len(headings)))
    if _fits(shown, whole, width):
        return [shown], whole
    # Between two numbers of a cell there are two spaces, at which it can be broken.
    least = [max((len(part) for cell in column for part in cell.split("  ")), default=0) for column in cells]
    least = [max(needed, min(SHORTEST_HEADING, most)) for needed, most in zip(least, whole, strict=True)]
    for name in ("time", "state"):
        if name in headings and not _fits(shown, least, width):
            shown.remove(headings.index(name))
    blocks: list[list[int]] = [[]]
    for index in shown:
        if blocks[-1] and not _fits([*blocks[-1], index], least, width):
            blocks.append([headings.index("trial")])
        blocks[-1].append(index)
    for index in shown:
        while least[index] < whole[index] and all(_fits(block, _wider(least, index), width) for block in blocks):
            least = _wider(least, index)
    return blocks, least


def _fits(columns: Sequence[int], widths: Sequence[int], width: int) -> bool:
    """Return whether a table fits: each column has a space and a divider behind it, and the table two edges."""
    return sum(widths[index] + 2 for index in columns) + 1 <= width


def _wider(widths: Sequence[int], index: int) -> list[int]:
    return [one + (place == index) for place, one in enumerate(widths)]


def _failed(result: StudyResult) -> list[str]:
    """Return each cause with the trials that failed of it, and where the rest is."""
    failed: dict[str, list[str]] = {}
    for record in sorted(result.records, key=lambda record: record.number):
        if record.reason is not None:
            why = f"{record.reason}: {printable(record.cause)}" if record.cause else str(record.reason)
            failed.setdefault(why, []).append(f"{record.number:03d}")
    lines = [
        f"Failed ({', '.join(numbers[:SHOWN])}{', …' if len(numbers) > SHOWN else ''}): {why}"
        for why, numbers in list(failed.items())[:SHOWN]
    ]
    if any(record.reason not in (None, FailReason.INFEASIBLE) for record in result.records):
        log = result.store.root / "logs" / result.name
        lines.append(f"The whole message is failure.txt on a trial's run; what the workers printed is in {log}.")
    return lines


def _registered(result: StudyResult) -> list[str]:
    if result.version is None:
        return []
    name, number = result.version
    whose = f"{result.best.label}, not trained again" if result.best else "an earlier trial"
    if (winner := choose(result.finalists)) is not None:
        whose = f"trial {winner.trial:03d}, mean {winner.mean:.4f}"
    role = "is the challenger" if result.is_challenger else "was the challenger when the study ended"
    return [f"Registered: {name} version {number} {role} ({whose})."]


def _columns(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the hyperparameters of each column: numbered ones (`filters_1`, `filters_2`) share one."""
    columns: dict[str, list[str]] = {}
    for name in names:
        if name != "epochs":
            columns.setdefault(re.sub(r"_\d+$", "", name).replace("_", " "), []).append(name)
    return columns


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _comparison(result: StudyResult) -> list[str]:
    best, baseline = result.best, result.baseline
    if best is None or best.objective is None:
        return ["No trial is complete: nothing can be said yet."]
    if baseline is None or baseline.objective is None:
        return [f"Best: {best.label} with {best.objective:.4f}; the baseline trial is not complete."]
    if best.number == baseline.number:
        return [f"The baseline trial itself is the best so far, with {best.objective:.4f}."]
    points = 100 * (best.objective - baseline.objective)
    return [
        f"Best: {best.label} with {best.objective:.4f} validation accuracy, {points:+.2f} points "
        f"against the baseline trial ({baseline.objective:.4f})."
    ]


def _ending(result: StudyResult) -> list[str]:
    trained, total = result.counted - result.began_with, result.total
    lines = [f"{result.counted} of {total} trials done, {trained} of them now, in {duration(result.seconds)}."]
    if result.repeats_left:
        lines.append(f"Up to {result.repeats_left} of the finalists' repeats are not trained yet.")
    elif trained == 0 and result.counted >= total:
        lines = [f"Nothing left to do: {result.counted} of {total} trials were done already."]
    if paused := sum(record.state is TrialState.PAUSED for record in result.records):
        lines.append(f"Paused, to go on with more trials if they are among the best: {paused}. --close ends them.")
    if result.exhausted:
        lines.append(f"The study ends here: {result.exhausted}.")
    elif result.stopped_by is not None:
        lines.append(f"Stopped by {STOPPED_BY[result.stopped_by]}; the unfinished trials wait.")
    elif result.counted < total:
        lines.append("The time of --budget or --timeout is over, or --epoch-budget is spent.")
    if result.busy_share is not None:
        lines.append(f"Workers: busy {100 * result.busy_share:.1f} % of the time.")
    return lines


def _where_next(result: StudyResult) -> list[str]:
    uri = result.store.tracking_uri
    next_steps = {}
    if result.run_id is not None:
        next_steps["MLflow UI:"] = _command(result, "ui", "--study", result.name)
        if uri.startswith("http"):
            next_steps["MLflow UI:"] = f"{uri.rstrip('/')}/#/experiments/{result.experiment_id}"
        next_steps["Report:"] = _command(result, "report", result.name)
    if result.version is not None:
        next_steps["Promote:"] = _command(result, "promote", "--study", result.name)
    lines = [f"{label:<13} {step}" for label, step in next_steps.items()]
    if result.exhausted is None:
        is_done = result.counted >= result.config.trials and not result.repeats_left
        changes: dict[str, object] = {"trials": result.config.trials + MORE_TRIALS} if is_done else {}
        if result.config.data_dir is not None and str(result.config.data_dir) == os.environ.get("FASHION_MNIST_DIR"):
            changes["data_dir"] = None  # The environment names it.
        command = result.config.model_copy(update=changes).command(_interpreter())
        lines.append(f"{'More trials:' if is_done else 'Go on:':<13} {command}")
    return lines


def _command(result: StudyResult, name: str, *arguments: str) -> str:
    store = [] if result.config.store == Path("mlruns") else ["--store", str(result.config.store)]
    command = shlex.join([_interpreter(), "-m", f"experiments.{name}", *arguments, *store])
    database = result.config.study_db
    # The other commands read the variable only; this address has no password.
    return command if database is None else f"{VARIABLE}={shlex.quote(database)} {command}"


def _interpreter() -> str:
    """Return the running Python as one would type it here."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
