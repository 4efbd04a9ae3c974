"""Stores that a command may not change: of earlier libraries, or read-only; and what is in them, byte by byte."""

import hashlib
import logging
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

# A library's migrations, and an earlier schema that its own steps can go back to.
EARLIER = {
    "mlflow": ("store/db_migrations", "17e22815139b"),
    "optuna": ("storages/_rdb/alembic", "v3.0.0.d"),
}


def make_older(root: Path, *libraries: str) -> None:
    """Give the databases of a store the schema of earlier libraries, with everything that is in them."""
    for library in libraries or EARLIER:
        folder, revision = EARLIER[library]
        config = Config()
        config.set_main_option("script_location", str(files(library) / folder))
        config.set_main_option("sqlalchemy.url", f"sqlite:///{root}/{library}.db")
        command.downgrade(config, revision)
        logging.getLogger("alembic").handlers.clear()
        with closing(sqlite3.connect(root / f"{library}.db")) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def revision(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def is_earlier(root: Path) -> bool:
    """Say whether both databases still have the schema that `make_older` gave them."""
    return all(revision(root / f"{library}.db") == earlier for library, (_, earlier) in EARLIER.items())


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
