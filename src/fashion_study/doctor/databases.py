"""The database files, checked by SQLite."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from fashion_study.errors import StoreError
from fashion_study.finding import Finding, Kind
from fashion_study.store.sqlite import BUSY_SECONDS
from fashion_study.store.store import Store

RESTORE = "nothing: restore the file from a copy"
RECOVER = f"{RESTORE}, or save what can be read with `sqlite3 FILE .recover`"


def damaged_databases(store: Store) -> Iterator[Finding]:
    """Check the database files of a store with SQLite; databases on a server are not checked.

    Raises:
        StoreError: a file is no database, or cannot be read.
    """
    runs, trial_storage = store.root / "mlflow.db", store.trials_file
    damaged = list(_check(trial_storage)) if store.database is None and trial_storage.is_file() else []
    if store.is_embedded:
        if runs.is_file():
            yield from _check(runs)
        elif not damaged and store.database is None and has_runs(store):
            what = "is gone, and with it the runs of the trial storage's studies"
            yield Finding(Kind.DATABASE, runs.name, what, RESTORE)
    yield from damaged


def has_runs(store: Store) -> bool:
    """Return whether any study of the trial storage has a run; a kill may have come before."""
    with store.optuna_storage() as storage:
        return any("run_id" in study.user_attrs for study in storage.get_all_studies())


def _check(path: Path) -> Iterator[Finding]:
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
            lines = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(3)")]
    except sqlite3.DatabaseError as error:
        if "malformed" not in str(error):
            raise StoreError(
                f"{path} cannot be read: {error}. Expected a database that this project made. Restore it from a copy, "
                "or name another store with --store."
            ) from error
        lines = [str(error)]
    if lines != ["ok"]:
        yield Finding(Kind.DATABASE, path.name, "; ".join(lines), RECOVER)
