"""The report of a check on a terminal."""

import shlex
from textwrap import TextWrapper

from rich.console import Console
from rich.text import Text

from fashion_study.doctor.check import CheckReport

INDENT = 4 * " "


def show_report(report: CheckReport, console: Console) -> None:
    """Print each finding with what was done or can be done, and a sentence on the store as it is now."""
    # No table: its cells would cut the id of a run in two where a terminal is narrow.
    paragraph = TextWrapper(
        console.width, initial_indent=INDENT, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False
    )
    for found in report.findings:
        label = "with --fix" if not report.is_fixing else "left" if found.done is None else "done"
        console.print(Text(found.kind, style="bold"))
        for line in (f"{found.where}: {found.what}", f"{label}: {found.done or found.remedy}"):
            console.print(Text(paragraph.fill(line)), soft_wrap=True)
    for line in (*report.notes, _summary(report)):
        console.print(Text(line), soft_wrap=True)


def _summary(report: CheckReport) -> str:
    count, root = len(report.findings), report.store.root
    if not count:
        return f"Nothing is wrong with {root}."
    if report.is_fixing:
        return f"{count} found in {root}, {count - report.remaining} repaired, {report.remaining} left."
    repairable = sum(found.repair is not None for found in report.findings)
    if not repairable:
        return f"{count} found in {root}. None can be repaired here."
    # On a line of its own, to be copied.
    command = f"python -m experiments.doctor --fix --store {shlex.quote(str(root))}"
    return f"{count} found in {root}. {repairable} can be repaired:\n{INDENT}{command}"
