"""A moved or copied store: the absolute addresses of its artifacts are changed to its new folder."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from fashion_study.store.sqlite import BUSY_SECONDS, back_up
from fashion_study.store.store import RUNS, Store

# Every column of MLflow's tables that holds the address of a file.
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
# Not LIKE, which would read '_' and '%' in a path as wildcards.
BELOW = "WHERE instr(%s, :old || '/') = 1"


@dataclass(frozen=True)
class Move:
    """The number of addresses below the former folder `old` of a store's artifacts; both folders are `file://` URIs."""

    old: str
    new: str
    addresses: int


def local_path(address: str) -> Path | None:
    """Return the local path of a `file://` address, None for any other address."""
    parts = urlsplit(address)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" and not parts.netloc else None


def moves(store: Store) -> list[Move]:
    """Return the former folders that a store's addresses point to after it was moved or copied.

    Artifacts that were stored elsewhere on purpose stay there.
    """
    if not store.is_embedded or not (store.databases / RUNS).is_file():
        return []
    new = store.artifacts.as_uri()
    with closing(_connect(store)) as connection:
        locations = [row[0] for row in connection.execute("SELECT artifact_location FROM experiments")]
        olds = {old for location in locations if (old := _former_folder(new, location or "")) is not None}
        return [
            Move(old, new, sum(len(_addresses(connection, *column, old)) for column in COLUMNS)) for old in sorted(olds)
        ]


def rebase(store: Store, move: Move) -> Path | None:
    """Change every address below the old folder to the store's own, all or none, and return a backup of the database.

    Artifacts that were logged into the old folder after the move are copied. Return None where another process has
    changed the addresses in the meantime.
    """
    with FileLock(store.root / ".move.lock"), closing(_connect(store)) as connection:
        if all(still.old != move.old for still in moves(store)):
            return None
        copy = back_up(store.root / RUNS)
        for table, column in (("runs", "artifact_uri"), ("logged_models", "artifact_location")):
            for address in _addresses(connection, table, column, move.old):
                _copy_artifacts(address, move)
        _change_addresses(connection, move)
    return copy


def rebase_copies(store: Store) -> None:
    """Change the addresses in the copy of a moved store's database; the store itself stays as it is."""
    for move in moves(store):
        with closing(_connect(store)) as connection:
            _change_addresses(connection, move)


def _change_addresses(connection: sqlite3.Connection, move: Move) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for table, column in COLUMNS:
            change = f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) {BELOW % column}"
            connection.execute(change, {"old": move.old, "new": move.new})


def _former_folder(here: str, location: str) -> str | None:
    """Return the folder with an experiment's artifacts, where the store was moved away from it."""
    head, _, name = location.rpartition("/artifacts/")
    old = f"{head}/artifacts"
    old_path, new_path = local_path(old), local_path(f"{here}/{name}")
    if not head or "/" in name or old_path is None or old == here:
        return None
    return old if (new_path and new_path.exists()) or not old_path.exists() else None


def _addresses(connection: sqlite3.Connection, table: str, column: str, old: str) -> list[str]:
    query = f"SELECT {column} FROM {table} {BELOW % column}"
    return [row[0] for row in connection.execute(query, {"old": old})]


def _copy_artifacts(address: str, move: Move) -> None:
    source, target = local_path(address), local_path(move.new + address.removeprefix(move.old))
    if source is None or target is None or target.exists() or not source.is_dir():
        return
    # An address may contain '..': nothing is read or written outside both folders.
    if not (_lies_in(source, move.old) and _lies_in(target, move.new)):
        return
    unfinished = target.with_name(f"{target.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    unfinished.rename(target)


def _lies_in(path: Path, folder: str) -> bool:
    local = local_path(folder)
    return local is not None and path.resolve().is_relative_to(local.resolve())


def _connect(store: Store) -> sqlite3.Connection:
    return sqlite3.connect(store.databases / RUNS, timeout=BUSY_SECONDS)
