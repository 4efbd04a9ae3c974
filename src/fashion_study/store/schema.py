"""Databases of a store, opened with the schema of the installed library: created whole, or migrated after a copy."""

import logging
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

from filelock import FileLock

from fashion_study.errors import StoreError
from fashion_study.store.sqlite import BUSY_SECONDS, back_up, copy_database, sqlite_uri

# Optuna's storage or MLflow's: both have an `engine` of SQLAlchemy's.
T = TypeVar("T", bound=Any)
Library = Literal["mlflow", "optuna"]

# Where each library keeps the steps of its migrations, which Alembic runs.
MIGRATIONS: dict[Library, str] = {"mlflow": "store/db_migrations", "optuna": "storages/_rdb/alembic"}


def open_database(database: Path, library: Library, make: Callable[[str], T], notify: Callable[[str], None]) -> T:
    """Let a library open a database, one process at a time: several would crash each other while they migrate it.

    A missing one is created under another name, and renamed once it is complete: libraries refuse a database for good
    where a kill has left only some of its tables. In write-ahead-log mode, which stays in the file, readers (the MLflow
    UI) and the one writer work at the same time.

    Raises:
        StoreError: the file system does not support that mode, or a later version of the library wrote the database.
    """
    with _migrating(database) as unfinished:
        if database.exists():
            _bring_up_to_date(database, library, unfinished, notify)
        else:
            with _synchronous_off():
                make(sqlite_uri(unfinished)).engine.dispose()
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            unfinished.replace(database)
        opened = make(sqlite_uri(database))
        with closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection:
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(
            f"{database} stays in journal mode {mode!r}; expected 'wal'. "
            "The file system may not support it: put the store on a local disk with --store."
        )
    return opened


def bring_up_to_date(database: Path, library: Library, notify: Callable[[str], None]) -> None:
    """Migrate a database of an earlier version of its library, after a copy that `notify` names.

    Raises:
        StoreError: a later version of the library wrote it.
    """
    with _migrating(database) as unfinished:
        _bring_up_to_date(database, library, unfinished, notify)


def is_older(database: Path, library: Library) -> bool:
    """Return whether a database has the schema of an earlier version of its library.

    Raises:
        StoreError: it has that of a later version, which the installed one cannot read.
    """
    try:
        with closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.DatabaseError:
        return False  # Damaged, or not of this library: the library says so.
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(_migrations(library))
    if found is None or found[0] == scripts.get_current_head():
        return False
    if found[0] in {script.revision for script in scripts.walk_revisions()}:
        return True
    raise StoreError(
        f"{database} has the schema {found[0]!r}, which {library} {version(library)} does not know. Expected that of "
        f"this version or of an earlier one: a later {library} wrote it. Install that version, or name another store "
        "with --store."
    )


def migrate(database: Path, library: Library) -> None:
    """Bring the schema of a database up to date in place, without waiting for the disk: a kill may damage it."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", _migrations(library).replace("%", "%%"))
    config.set_main_option("sqlalchemy.url", sqlite_uri(database).replace("%", "%%"))
    # Where the root logger has no handler, Optuna sets up logging from a file, which silences every other logger.
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        with _synchronous_off():
            command.upgrade(config, "heads")
    finally:
        logging.getLogger().removeHandler(handler)


def to_stderr(line: str) -> None:
    """Print what has happened to a database, for commands without an observer."""
    print(line, file=sys.stderr)


@contextmanager
def _migrating(database: Path) -> Iterator[Path]:
    """Keep other processes from migrating a database, and yield the path under which it is prepared."""
    with FileLock(database.with_name(f".{database.stem}-migration.lock"), timeout=BUSY_SECONDS):
        unfinished = database.with_name(f".{database.name}.part")
        for leftover in database.parent.glob(f"{unfinished.name}*"):
            leftover.unlink()
        yield unfinished


def _bring_up_to_date(database: Path, library: Library, unfinished: Path, notify: Callable[[str], None]) -> None:
    if not is_older(database, library):
        return
    copy = back_up(database)
    copy_database(copy, unfinished)
    migrate(unfinished, library)
    # In one transaction: a kill leaves a database of the one schema or of the other.
    copy_database(unfinished, database)
    unfinished.unlink()
    notify(
        f"{database} was of an earlier {library}: it is migrated to {version(library)}; a copy from before is {copy}"
    )


def _migrations(library: Library) -> str:
    # Without an import of the library, which takes seconds.
    spec = find_spec(library)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return f"{spec.submodule_search_locations[0]}/{MIGRATIONS[library]}"


@contextmanager
def _synchronous_off() -> Iterator[None]:
    """Open SQLite connections without waiting for the disk: MLflow takes hundreds of steps to make its tables."""
    from sqlalchemy import Engine, event

    def relax(connection: object, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", relax)
    try:
        yield
    finally:
        event.remove(Engine, "connect", relax)
