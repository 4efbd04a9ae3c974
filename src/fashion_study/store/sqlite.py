"""SQLite databases of a store: created whole, in write-ahead-log mode, and on a local disk only."""

import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
from filelock import FileLock

from fashion_study.errors import StoreError

# Optuna's storage or MLflow's: both have an `engine` of SQLAlchemy's.
T = TypeVar("T", bound=Any)

# Longer than any write of this project takes: the MLflow UI may be reading.
BUSY_SECONDS = 60
# The write-ahead log needs memory that all processes share, which several machines do not have. Not listed are file
# systems that only bring a host's files into its guest (9p of WSL and containers, virtiofs): one machine opens those.
NETWORK = re.compile(
    r"(fuse\.)?(nfs|cifs|smb|afp|afs|ncpfs|coda|lustre|gpfs|beegfs|ceph|gluster|orangefs|pvfs|lizardfs|moosefs|weka|"
    r"sshfs|dav|webdav|s3|mount-s3|mountpoint-s3|goofys|gcsfuse|blobfuse|rclone|juicefs)"
)

Mount = tuple[str, str]


def sqlite_uri(path: Path) -> str:
    """Return the address of a database file, as SQLAlchemy reads it."""
    return f"sqlite:///{path}"


def absolute_uri(uri: str) -> str:
    """Return an address that means the same database from any working directory."""
    path, mark, query = uri.removeprefix("sqlite:///").partition("?")
    if not uri.startswith("sqlite:///") or path in ("", ":memory:") or path.startswith("file:"):
        return uri
    return f"{sqlite_uri(Path(path).resolve())}{mark}{query}"


def open_database(database: Path, make: Callable[[str], T]) -> T:
    """Let a library open a database, one process at a time: several would crash each other while they migrate it.

    A missing one is created under another name, and renamed once it is complete: libraries refuse a database for good
    where a kill has left only some of its tables. In write-ahead-log mode, which stays in the file, readers (the MLflow
    UI) and the one writer work at the same time.

    Raises:
        StoreError: the file system does not support that mode.
    """
    with FileLock(database.with_name(f".{database.stem}-migration.lock"), timeout=BUSY_SECONDS):
        if not database.exists():
            unfinished = database.with_name(f".{database.name}.part")
            for leftover in database.parent.glob(f"{unfinished.name}*"):
                leftover.unlink()
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


def mounts() -> list[Mount]:
    """Return the mount point and type of every file system, in the order in which they were mounted."""
    try:
        return [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]
    except (OSError, psutil.Error):  # A system without such a table.
        return []


def filesystem_of(folder: Path, table: Iterable[Mount]) -> Mount | None:
    """Return the file system of an absolute folder, which need not exist yet.

    Of those mounted at the same place the last one covers the others.
    """
    above = [(point, kind) for point, kind in table if folder.is_relative_to(point)]
    return max(reversed(above), key=lambda mount: len(Path(mount[0]).parts), default=None)


def refuse_network(folder: Path, table: Iterable[Mount]) -> None:
    """Refuse a store on a network file system.

    Raises:
        StoreError: with the file system that was found, and the way out.
    """
    point, kind = filesystem_of(folder, table) or ("", "")
    if NETWORK.match(kind.lower()):
        raise StoreError(
            f"The store {folder} lies on a network file system ({kind}, mounted at {point}). Expected a local disk: "
            "SQLite's write-ahead log needs memory that all its processes share, and a database is damaged without it. "
            "Name a folder on a local disk with --store, or an MLflow server in MLFLOW_TRACKING_URI."
        )
