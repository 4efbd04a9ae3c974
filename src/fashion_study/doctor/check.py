"""The check of a store: everything that can disagree in it, in the order in which it is repaired, and its report."""

import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import TextWrapper

from rich.console import Console
from rich.text import Text

from fashion_study.errors import StoreError
from fashion_study.finding import Finding, Kind
from fashion_study.store.failures import store_failures
from fashion_study.store.reading import reading
from fashion_study.store.relocation import Move, moves, rebase
from fashion_study.store.sqlite import BUSY_SECONDS
from fashion_study.store.store import RUNS, Store, find_store

INDENT = 4 * " "
RESTORE = "nothing: restore the file from a copy"
RECOVER = f"{RESTORE}, or save what can be read with `sqlite3 FILE .recover`"


@dataclass(frozen=True)
class CheckReport:
    """The findings in a store, each with what was done about it, and notes on what is no damage."""

    store: Store
    is_fixing: bool
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def remaining(self) -> int:
        """Return how many findings are left."""
        return sum(found.done is None for found in self.findings)


def check_store(root: Path, fix: bool = False) -> CheckReport:
    """Compare trial storage, runs, registry and files of a store; with `fix` repair what can be repaired.

    No result is deleted: what is lost is recorded as lost. A study that a process is running is left alone.

    Raises:
        StoreError: there is no store, and nothing is made; or it cannot be read.
    """
    store = find_store(root, needs="either", writes="what is repaired is written there" if fix else None)
    notes: list[str] = []
    with (
        store_failures(store, "What was repaired stays repaired; call the doctor again when it answers."),
        nullcontext(store) if fix else reading(store, rebases=False) as opened,
    ):
        findings = tuple(
            replace(found, done=found.repair()) if fix and found.repair else found for found in _findings(opened, notes)
        )
    if opened.copies is not None:
        cause = "they are of an earlier MLflow or Optuna" if store.is_writable else "the store is read-only"
        notes.append(f"Copies of the databases were looked at: {cause}.")
    return CheckReport(store, fix, findings, tuple(notes))


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


def _findings(store: Store, notes: list[str]) -> Iterator[Finding]:
    """Find what disagrees, each after what has to be repaired before it."""
    if damaged := list(_damaged_databases(store)):
        notes.append("Nothing else was looked at: a damaged database tells nothing that can be trusted.")
        yield from damaged
    elif store.is_embedded and not (store.root / RUNS).is_file():
        notes.append("No study of this store has a run yet: run_study goes on with it.")
    else:
        for move in moves(store):
            yield _moved(store, move)
        yield from _of_open_store(store, notes)


def _damaged_databases(store: Store) -> Iterator[Finding]:
    """Check the database files of a store with SQLite; databases on a server are not checked.

    Raises:
        StoreError: a file is no database, or cannot be read.
    """
    runs, has_trials_file = store.databases / RUNS, store.database is None and store.trials_file.is_file()
    damaged = list(_damaged_database(store, store.trials_file)) if has_trials_file else []
    if store.is_embedded and runs.is_file():
        yield from _damaged_database(store, runs)
    elif store.is_embedded and has_trials_file and not damaged:
        with store.optuna_storage() as storage:
            # A kill may have come before the first run.
            if any("run_id" in study.user_attrs for study in storage.get_all_studies()):
                what = "is gone, and with it the runs of the trial storage's studies"
                yield Finding(Kind.DATABASE, runs.name, what, RESTORE)
    yield from damaged


def _damaged_database(store: Store, path: Path) -> Iterator[Finding]:
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
            lines = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(3)")]
    except sqlite3.DatabaseError as error:
        if "malformed" not in str(error):
            raise StoreError(
                f"{store.root / path.name} cannot be read: {error}. Expected a database that this project made. "
                "Restore it from a copy, or name another store with --store."
            ) from error
        lines = [str(error)]
    if lines != ["ok"]:
        yield Finding(Kind.DATABASE, path.name, "; ".join(lines), RECOVER)


def _moved(store: Store, move: Move) -> Finding:
    def repair() -> str:
        if (copy := rebase(store, move)) is None:
            return "they point here: another process has seen to it"
        return f"they point here; {copy.relative_to(store.root)} is the database as it was"

    what = f"{move.addresses} addresses of artifacts point to {move.old}"
    return Finding(Kind.MOVED, RUNS, what, "lets them point here, after a copy of the database", repair)


def _of_open_store(store: Store, notes: list[str]) -> Iterator[Finding]:
    from fashion_study.doctor.context import CheckContext
    from fashion_study.doctor.files import damaged_files
    from fashion_study.doctor.registry import damaged_registry
    from fashion_study.doctor.studies import damaged_reproductions, damaged_studies, orphan_runs

    context = CheckContext(store, store.client(), notes)
    if not store.is_embedded:
        notes.append(
            f"MLflow's data lie at {store.tracked_at}: its database, where it keeps its files, and runs of other "
            "stores are not looked at."
        )
    yield from damaged_studies(context)
    yield from damaged_reproductions(context)
    yield from orphan_runs(context)
    if moves(store):
        notes.append("Files and registry are checked once the addresses are repaired.")
        return
    yield from damaged_files(context)
    yield from damaged_registry(context)
