"""A store for commands that only read: itself, or copies of databases that are read-only or of an earlier version."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from fashion_study.store.failures import opening
from fashion_study.store.relocation import rebase_copies
from fashion_study.store.schema import Library, is_older, migrate
from fashion_study.store.sqlite import copy_database
from fashion_study.store.store import Store

ADVICE = (
    "Expected databases that can be read, and room for their copies. Restore them, or free space there or name another "
    "folder for temporary files in TMPDIR."
)


@contextmanager
def reading(store: Store, *, rebases: bool = True) -> Iterator[Store]:
    """Yield a store to read from, and leave `store` as it is.

    Where its files cannot be written, SQLite could keep neither locks nor a write-ahead log there; those of an earlier
    MLflow or Optuna would have to be migrated. Both are done to copies, in a temporary folder that goes with the block.
    The copies name the artifacts where they lie now, unless it `rebases` nothing.

    Raises:
        StoreError: the databases cannot be read or copied, or a later MLflow or Optuna wrote them.
    """
    candidates: dict[Library, Path | None] = {
        "mlflow": store.runs_file,
        "optuna": store.trials_file if store.database is None else None,
    }
    files = {library: file for library, file in candidates.items() if file is not None and file.is_file()}
    touched = [path for path in (store.root, *files.values()) if path.exists()]
    can_write = all(os.access(path, os.W_OK) for path in touched)
    if can_write and not any(is_older(file, library) for library, file in files.items()):
        yield store
        return
    with ExitStack() as stack:
        with _copying(store.root):
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="fashion-study-")))
            copies = replace(store, copies=folder)
            for library, file in files.items():
                with _copying(file):
                    _copy(file, folder / f"{library}.db", library)
            if rebases:
                rebase_copies(copies)
        yield copies


def _copying(place: Path) -> AbstractContextManager[None]:
    return opening("SQLite", f"{place}, copied to {gettempdir()}", advice=ADVICE)


def _copy(file: Path, copy: Path, library: Library) -> None:
    copy_database(file, copy)
    if is_older(copy, library):
        migrate(copy, library)
