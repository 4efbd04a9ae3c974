"""What a person reads when a study has ended: the ranking, the best against the baseline, what to do next."""

import re
import shlex
from collections.abc import Iterable
from signal import Signals

from rich import box
from rich.console import Console
from rich.table import Table

from fashion_study.engines.ledger import TrialRecord
from fashion_study.progress import duration
from fashion_study.study import StudyResult

SHOWN = 12
MORE_TRIALS = 20


def summarise(result: StudyResult, console: Console) -> None:
    """Print where a study stands."""
    console.print()
    console.print(_ranking(result))
    for line in (*_comparison(result), *_ending(result), *_where_next(result)):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _ranking(result: StudyResult) -> Table:
    fallback = "  (FALLBACK, not Fashion-MNIST)" if result.source.is_fallback else ""
    left_out = len(result.records) - SHOWN
    table = Table(
        title=f"{result.name} on {result.source.name}{fallback}",
        caption=f"and {left_out} more in the MLflow UI" if left_out > 0 else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    columns = _columns(result.records[0].params if result.records else ())
    for heading in ("rank", "trial", "val accuracy", "state", *columns, "epochs", "time"):
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for place, record in enumerate(result.records[:SHOWN], start=1):
        values = ["-".join(_short(record.params.get(name, "")) for name in names) for names in columns.values()]
        time = "" if record.seconds is None else duration(record.seconds)
        row = (
            str(place),
            f"{record.number:03d}",
            _accuracy(record),
            str(record.reason or record.state),
            *values,
            _epochs(record),
            time,
        )
        table.add_row(*row, style="bold" if record is result.best else None)
    return table


def _columns(names: Iterable[str]) -> dict[str, list[str]]:
    """Give each hyperparameter a column, and numbered ones (`filters_1`, `filters_2`) one together."""
    columns: dict[str, list[str]] = {}
    for name in names:
        if name != "epochs":
            columns.setdefault(re.sub(r"_\d+$", "", name).replace("_", " "), []).append(name)
    return columns


def _epochs(record: TrialRecord) -> str:
    asked = record.params.get("epochs")
    return f"{len(record.curve)}" if asked is None else f"{len(record.curve)} of {asked}"


def _accuracy(record: TrialRecord) -> str:
    """Show the objective of a complete trial; of another one what it had reached."""
    reached = record.curve[max(record.curve)] if record.curve else None
    value = reached if record.objective is None else record.objective
    return "" if value is None else f"{value:.4f}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _comparison(result: StudyResult) -> list[str]:
    best, baseline = result.best, result.baseline
    if best is None or best.objective is None:
        return ["No trial is complete: nothing can be said yet."]
    if baseline is None or baseline.objective is None:
        return [f"Best: trial {best.number:03d} with {best.objective:.4f}; the baseline trial is not complete."]
    if best.number == baseline.number:
        return [f"The baseline trial itself is the best so far, with {best.objective:.4f}."]
    points = 100 * (best.objective - baseline.objective)
    return [
        f"Best: trial {best.number:03d} with {best.objective:.4f} validation accuracy, {points:+.2f} points "
        f"against the baseline trial ({baseline.objective:.4f})."
    ]


def _ending(result: StudyResult) -> list[str]:
    trained = result.counted - result.began_with
    lines = [
        f"{result.counted} of {result.config.trials} trials done, {trained} of them now, in {duration(result.seconds)}."
    ]
    if trained == 0 and result.counted >= result.config.trials:
        lines = [f"Nothing left to do: {result.counted} of {result.config.trials} trials were done already."]
    if result.exhausted:
        lines.append(f"The study ends early: {result.exhausted}.")
    if result.stopped_by is Signals.SIGINT:
        lines.append("Stopped by Ctrl-C; the unfinished trials wait.")
    return lines


def _where_next(result: StudyResult) -> list[str]:
    uri = result.store.tracking_uri
    page = f"#/experiments/{result.experiment_id}"
    is_done = result.counted >= result.config.trials
    total = result.config.trials + MORE_TRIALS if is_done else result.config.trials
    command = result.config.model_copy(update={"trials": total}).command()
    following = f"{'More trials:' if is_done else 'Go on:':<13} {command}"
    if not result.store.is_embedded:
        return [f"MLflow UI:    {uri}/{page}", following]
    return [
        f"MLflow UI:    {shlex.join(['mlflow', 'ui', '--backend-store-uri', uri])}",
        f"              then open http://127.0.0.1:5000/{page}",
        following,
    ]
