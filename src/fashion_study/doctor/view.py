"""What the doctor says."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fashion_study.doctor.examination import Examination, Treated


def show_examination(examination: Examination, console: Console) -> None:
    """Print a table of what was found and what was or can be done, and a sentence on where that leaves the store."""
    if examination.results:
        console.print(_table(examination))
    for note in examination.notes:
        console.print(escape(note), highlight=False)
    console.print(escape(_summary(examination)), highlight=False)


def _table(examination: Examination) -> Table:
    table = Table("kind", "where", "what", "what was done" if examination.is_fixing else "what --fix does")
    for result in examination.results:
        found = result.finding
        table.add_row(*map(escape, (found.kind, found.where, found.what, _outcome(result))))
    return table


def _outcome(result: Treated) -> str:
    return result.done or result.finding.remedy


def _summary(examination: Examination) -> str:
    count, root = len(examination.results), examination.store.root
    if not count:
        return f"Nothing is wrong with {root}."
    if examination.is_fixing:
        return f"{count} found in {root}, {count - examination.remaining} mended, {examination.remaining} left."
    mendable = sum(result.finding.repair is not None for result in examination.results)
    command = f"python -m experiments.doctor --fix --store {root}"
    return f"{count} found in {root}. " + (f"{command} mends {mendable}." if mendable else "None can be mended here.")
