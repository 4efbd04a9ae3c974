"""SQLite databases of a store: their addresses, copies of them, and the local disk that they need."""

import re
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import psutil

from fashion_study.errors import StoreError

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


def database_file(uri: str) -> Path | None:
    """Return the path of the database file at an address, None where the address is of anything else."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    is_file = uri.startswith("sqlite:///") and path not in ("", ":memory:") and not path.startswith("file:")
    return Path(path) if is_file else None


def absolute_uri(uri: str) -> str:
    """Return an address that means the same database from any working directory."""
    _, mark, query = uri.partition("?")
    return uri if (path := database_file(uri)) is None else f"{sqlite_uri(path.resolve())}{mark}{query}"


def copy_database(source: Path, target: Path) -> None:
    """Copy a database into another one in one transaction; it may lie in a folder that cannot be written."""
    try:
        with (
            closing(sqlite3.connect(source, timeout=BUSY_SECONDS)) as old,
            closing(sqlite3.connect(target, timeout=BUSY_SECONDS)) as new,
        ):
            old.backup(new)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        # SQLite would have to make the shared memory of the write-ahead log there. No writer has, so nobody writes.
        for ending in ("", "-wal", "-journal"):
            if (file := Path(f"{source}{ending}")).exists():
                shutil.copyfile(file, f"{target}{ending}")


def back_up(database: Path) -> Path:
    """Copy a database into the folder `backups` beside it, and return the copy, whose name has the time."""
    folder = database.with_name("backups")
    folder.mkdir(exist_ok=True)
    copy = folder / f"{database.stem}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.db"
    unfinished = copy.with_suffix(".part")
    copy_database(database, unfinished)
    return unfinished.replace(copy)


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
