"""A store that fails: told apart from a bug of this project, and reported in one message."""

import errno
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING

from fashion_study.errors import StoreError, StudyError
from fashion_study.paths import check_temporary_folder
from fashion_study.store.mlflow_server import login_refused
from fashion_study.text import without_passwords

if TYPE_CHECKING:
    from fashion_study.store.store import Store

# Errors of a disk. Any other OSError is the store's where it is about a file of the store's.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.ESTALE}
# PEP 249's names, as the drivers and SQLAlchemy have them; the others (IntegrityError ...) blame the query.
DATABASE_ERRORS = ("OperationalError", "InterfaceError", "InternalError", "DatabaseError", "TimeoutError")
# MLflow's names for a request that should not have been made; but a run that was deleted meanwhile is no bug.
MISTAKES = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS")
DELETED = re.compile(r"The (run|experiment) (\S+) must be in the 'active' state")
MISSING = "RESOURCE_DOES_NOT_EXIST"
# MLflow's names for a log-in that its server refuses.
REFUSALS = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")
EXPECTED = (
    "Expected a store that this library made itself. "
    "Free space if it is full, restore it from a copy, or name another one with --store or MLFLOW_TRACKING_URI."
)
EXPECTED_ELSEWHERE = "Expected MLflow's own answer. See to the server and its log, or correct MLFLOW_TRACKING_URI."


@contextmanager
def opening(library: str, uri: str, *more: type[Exception], advice: str | None = None) -> Iterator[None]:
    """Turn any error of a database that cannot be opened into one message.

    Raises:
        StoreError: with `advice`, by default what fits the address, or with what to do about a refused log-in.
    """
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    # Optuna raises a RuntimeError for a database of another version of it.
    known: tuple[type[Exception], ...] = (SQLAlchemyError, CommandError, RuntimeError, OSError, sqlite3.Error, *more)
    try:
        yield
    except known as error:
        if getattr(error, "error_code", None) in REFUSALS:
            raise login_refused(uri, str(error)) from error
        place = without_passwords(uri)
        if advice is None:
            advice = EXPECTED if uri.startswith("sqlite:") else EXPECTED_ELSEWHERE
        raise StoreError(f"{library} cannot open its store at {place}: {_first_line(error)}. {advice}") from error


@contextmanager
def store_failures(store: "Store", advice: str) -> Iterator[None]:
    """Turn any error of a store that fails into one message, which ends with `advice`; a bug keeps its traceback.

    Raises:
        StoreError: the disk, the database or the server failed.
    """
    try:
        yield
    except StudyError:
        raise  # Has its message already, which must not wait for MLflow's import.
    except Exception as error:
        if (cause := _root_cause(error, store.root)) is None:
            raise
        check_temporary_folder()
        place, reason = _place(error, store), _reason(cause)
        if gone := DELETED.search(reason):
            message = f"The {gone[1]} {gone[2]} of {place} is deleted in MLflow. Expected it to be there. "
            raise StoreError(message + restoring(gone[1], gone[2], store)) from error
        if getattr(cause, "error_code", None) == MISSING:
            raise StoreError(
                f"MLflow does not find what it is asked for in {place}: {reason}. Expected what the store names: it "
                "was deleted for good, or MLFLOW_TRACKING_URI or --store is another one. python -m experiments.doctor "
                "says what is missing."
            ) from error
        raise StoreError(
            f"The store {place} gave up: {reason}. Expected it to take what is written. {advice}"
        ) from error


def restoring(kind: str, name: str, store: "Store") -> str:
    """Advise how to bring back a run or an experiment that is deleted in MLflow, but not for good."""
    doctor = f"python -m experiments.doctor --fix --store {shlex.quote(str(store.root))}, or " if kind != "run" else ""
    restore = f"MLFLOW_TRACKING_URI={shlex.quote(store.tracked_at)} mlflow {kind}s restore --{kind}-id {name}"
    return f"Bring it back with {doctor}{restore}; then the same command goes on."


class StoreFailurePolicy:
    """How often workers may fail to write to the store: once, but not twice in a row nor twice for one trial."""

    def __init__(self) -> None:
        self._is_failing = False
        self._failed: set[str] = set()

    def has_answered(self) -> None:
        """Record that a worker has written its model, or the checkpoint of a paused trial."""
        self._is_failing = False

    def has_failed(self, label: str, cause: str) -> None:
        """Record that the worker with the trial `label` could not write its checkpoint or its model.

        Raises:
            StoreError: that has happened before.
        """
        is_lasting = self._is_failing or label in self._failed
        self._is_failing = True
        self._failed.add(label)
        if is_lasting:
            check_temporary_folder()
            raise StoreError(
                f"The workers cannot write down what they have trained: {cause}. Expected the store to take it. "
                "No trial has lost an attempt by it. Free space, or see to the store; the same command goes on."
            )


def _place(error: Exception, store: "Store") -> str:
    """Return the part of a store that has failed."""
    from mlflow.exceptions import MlflowException

    # MLflow turns the errors of its own database into exceptions of its own.
    if isinstance(error, MlflowException):
        return str(store.root) if store.is_embedded else store.tracked_at
    is_file = store.database is None or isinstance(error, sqlite3.Error | OSError)
    return str(store.root) if is_file else f"at {store.database}"


def _root_cause(error: BaseException | None, root: Path) -> BaseException | None:
    """Return the store's own error among an error and its causes; None where it is a bug."""
    from mlflow.exceptions import MlflowException
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, StorageInternalError):
        return _root_cause(error.__cause__, root)
    if isinstance(error, MlflowException):
        cause = error.__cause__ or error.__context__
        if isinstance(cause, SQLAlchemyError | sqlite3.Error | OSError | MlflowException):
            return _root_cause(cause, root)
        # MLflow wraps its own bugs, too.
        is_mistake = error.error_code in MISTAKES and not DELETED.search(error.message)
        return None if error.__cause__ or is_mistake else error
    if isinstance(error, SQLAlchemyError | sqlite3.Error):
        return error if type(error).__name__ in DATABASE_ERRORS else None
    return error if isinstance(error, OSError) and _is_of_store(error, root) else None


def _is_of_store(error: OSError, root: Path) -> bool:
    from filelock import Timeout
    from requests import RequestException

    if isinstance(error, RequestException | Timeout) or error.errno in DISK_ERRORS:
        return True
    if not isinstance(error.filename, str | Path):
        return False
    return any(Path(error.filename).is_relative_to(folder) for folder in (root, gettempdir()))


def _reason(cause: BaseException) -> str:
    from requests import RequestException

    if isinstance(cause, RequestException):
        found = re.search(r"\[Errno \d+\] ([\w ]+)", str(cause))
        return f"no answer from the server ({found[1] if found else type(cause).__name__})"
    if isinstance(cause, OSError) and cause.strerror:
        return without_passwords(cause.strerror + (f": {cause.filename}" if cause.filename else ""))
    return _first_line(cause)


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "orig", None) or error) or repr(error)
    return without_passwords(text.splitlines()[0]).rstrip(".")
