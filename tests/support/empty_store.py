"""A new store whose MLflow database is a copy: making one takes hundreds of migrations and more than a second."""

import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from fashion_study.store.store import Store, open_store


def empty_store(root: Path) -> Store:
    """Return a store in a new folder, with MLflow's database as `Store.client` makes it."""
    store = open_store(root)
    database = root / "mlflow.db"
    database.write_bytes(_database())
    with closing(sqlite3.connect(database)) as connection, connection:
        location = (root.resolve() / "artifacts" / "0").as_uri()
        connection.execute("UPDATE experiments SET artifact_location = ?", (location,))
    return store


@cache
def _database() -> bytes:
    with TemporaryDirectory() as folder:
        open_store(folder).client()
        with closing(sqlite3.connect(Path(folder, "mlflow.db"))) as connection:
            return connection.serialize()
