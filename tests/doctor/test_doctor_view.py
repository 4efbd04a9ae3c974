"""The promise of what the doctor shows: at any width of a terminal, what is to be copied stands in one piece."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fashion_study.doctor.check import CheckReport, show_report
from fashion_study.finding import Finding, Kind
from fashion_study.store.store import Store

RUN, OTHER = "9f5fd2250a1b4c6e8d7f3a2b1c0d9e8f", "46834ddc9c8b7a695847362514039281"
STORE = Store(Path("/data/studies/of the spring/mlruns"), "sqlite://")
FOUND = (
    Finding(Kind.ZOMBIE_STUDY, "digits-smoke", f"run {RUN} is RUNNING, and no process runs the study", "ends it", str),
    Finding(
        Kind.DUPLICATE_CURRENT_RUN,
        f"run {RUN} of trial 001",
        "is current too",
        f"marks it as superseded by {OTHER}",
        str,
    ),
    Finding(Kind.DATABASE, "optuna.db", "is gone", "nothing: restore the file from a copy"),
    Finding(Kind.VERSION, "digits-cnn version 1", "[bold]model.keras[/bold] altered", "writes it on the version", str),
)


def shown(report: CheckReport, width: int) -> str:
    console = Console(file=StringIO(), width=width)
    show_report(report, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [20, 80, 400])
def test_ids_and_commands_are_whole_at_any_width(width: int) -> None:
    text = shown(CheckReport(STORE, False, FOUND, ()), width)
    assert text.count(RUN) == 2
    assert OTHER in text
    assert "[bold]model.keras[/bold] altered" in " ".join(text.split())
    command = f"python -m experiments.doctor --fix --store '{STORE.root}'"
    assert text.endswith(f"4 found in {STORE.root}. 3 can be repaired:\n    {command}\n")


def test_after_a_repair_each_says_what_was_done_or_is_left() -> None:
    findings = (replace(FOUND[0], done="its run is KILLED"), FOUND[2])
    text = shown(CheckReport(STORE, True, findings, ("1 runs are deleted in MLflow: left as they are.",)), 80)
    assert text.splitlines() == [
        "study without a process",
        f"    digits-smoke: run {RUN} is RUNNING, and no",
        "    process runs the study",
        "    done: its run is KILLED",
        "damaged database",
        "    optuna.db: is gone",
        "    left: nothing: restore the file from a copy",
        "1 runs are deleted in MLflow: left as they are.",
        f"2 found in {STORE.root}, 1 repaired, 1 left.",
    ]
