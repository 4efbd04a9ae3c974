"""What a person reads when a study has ended: the ranking, the best against the baseline, what to do next."""

import shlex
from signal import Signals

from rich.console import Console
from rich.table import Table

from fashion_study.engines.ledger import TrialRecord
from fashion_study.progress import duration
from fashion_study.study import StudyResult
from fashion_study.trial import TrialState

SHOWN = 12


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
    )
    names = list(result.records[0].params) if result.records else []
    for heading in ("rank", "trial", "val_accuracy", *names, "epochs_run", "time"):
        table.add_column(heading.replace("_", "\n"), justify="right")
    for place, record in enumerate(result.records[:SHOWN], start=1):
        values = [_short(record.params.get(name)) for name in names]
        seconds = "" if record.seconds is None else duration(record.seconds)
        row = (str(place), f"{record.number:03d}", _outcome(record), *values, str(len(record.curve)), seconds)
        table.add_row(*row, style="bold" if record is result.best else None)
    return table


def _outcome(record: TrialRecord) -> str:
    if record.objective is not None:
        return f"{record.objective:.4f}"
    if record.state is TrialState.PRUNED:
        return f"pruned ({record.curve[max(record.curve)]:.4f})" if record.curve else "pruned"
    return str(record.reason or record.state)


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
    lines = [f"{result.counted} of {result.trials} trials done, {trained} of them now, in {duration(result.seconds)}."]
    if trained == 0 and result.counted >= result.trials:
        lines = [f"Nothing left to do: {result.counted} of {result.trials} trials were done already."]
    if result.exhausted:
        lines.append(f"The study ends early: {result.exhausted}.")
    if result.stopped_by is Signals.SIGINT:
        lines.append("Stopped by Ctrl-C; the unfinished trials wait.")
    return lines


def _where_next(result: StudyResult) -> list[str]:
    uri = result.store.tracking_uri
    page = f"#/experiments/{result.experiment_id}"
    more = ["Go on: the same command"]
    if result.counted >= result.trials:
        more = [f"More trials: the same command with --trials {result.trials + 20}"]
    if not result.store.is_embedded:
        return [f"MLflow UI: {uri}/{page}", *more]
    return [
        f"MLflow UI: {shlex.join(['mlflow', 'ui', '--backend-store-uri', uri])}",
        f"           then http://127.0.0.1:5000/{page}",
        *more,
    ]
