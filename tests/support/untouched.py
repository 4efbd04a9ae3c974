"""Stores that a command may not change: of earlier libraries, or read-only; and what is in them, byte by byte."""

import hashlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

# The schema of an earlier version of each library.
EARLIER = {"mlflow": "17e22815139b", "optuna": "v3.0.0.d"}


def make_older(root: Path, *libraries: str) -> None:
    """Give the databases of a store the schema of earlier libraries, with everything that is in them."""
    for library in libraries or EARLIER:
        file = root / f"{library}.db"
        if library == "mlflow":
            config = Config()
            config.set_main_option("script_location", str(files("mlflow") / "store" / "db_migrations"))
            config.set_main_option("sqlalchemy.url", f"sqlite:///{file}")
            command.downgrade(config, EARLIER[library])
        with closing(sqlite3.connect(file)) as database:
            if library == "optuna":
                # Its own step back expects the index under the name that its own step forward gives it.
                database.execute("DROP INDEX ix_trials_study_id")
                database.execute("UPDATE alembic_version SET version_num = ?", (EARLIER[library],))
                database.commit()
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def revision(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def is_earlier(root: Path) -> bool:
    """Say whether both databases still have the schema that `make_older` gave them."""
    return all(revision(root / f"{library}.db") == earlier for library, earlier in EARLIER.items())


def content(root: Path) -> dict[str, str]:
    """Return the digest of every file."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Let nobody write to a folder while the block runs, root included."""
    if os.geteuid():
        subprocess.run(["chmod", "-R", "a-w", root], check=True)
        try:
            yield
        finally:
            subprocess.run(["chmod", "-R", "u+w", root], check=True)
        return
    if subprocess.run(["mount", "--bind", root, root], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a folder")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", root], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)
