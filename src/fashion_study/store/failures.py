"""A store that fails: told from a mistake of ours, and said in one message."""

import errno
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_study.errors import StoreError, StudyError
from fashion_study.store.mlflow_server import login_refused
from fashion_study.text import without_passwords

if TYPE_CHECKING:
    from fashion_study.store.store import Store

# What a disk says, or whatever lends one. Of other errors only those about a file of the store's are the store's.
DISK_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "ENODEV", "ENXIO", "ESTALE")
    if hasattr(errno, name)
}
# PEP 249's names, as the drivers and SQLAlchemy have them; the others (IntegrityError ...) blame what was asked.
DATABASE_ERRORS = ("OperationalError", "InterfaceError", "InternalError", "DatabaseError", "TimeoutError")
# MLflow's names for a question that should not have been asked.
MISTAKES = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS")
# But so it answers, too, where a run was deleted by hand in the meantime.
DELETED = "must be in the 'active' state"


# MLflow's names for what its server answers to a log-in that it does not take.
REFUSALS = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")
EXPECTED = (
    "Expected a store that {library} made itself. "
    "Free space if it is full, restore it from a copy, or name another one with --store or MLFLOW_TRACKING_URI."
)


@contextmanager
def opening(library: str, uri: str, *more: type[Exception], advice: str = EXPECTED) -> Iterator[None]:
    """Turn what the libraries raise for a database that cannot be opened into one message.

    Raises:
        StoreError: with `advice`, or with what to do about a refused log-in.
    """
    from alembic.util import CommandError
    from filelock import Timeout
    from sqlalchemy.exc import SQLAlchemyError

    # Optuna raises a RuntimeError for a database of another version of it.
    known: tuple[type[Exception], ...] = (SQLAlchemyError, CommandError, RuntimeError, OSError, sqlite3.Error, Timeout)
    try:
        yield
    except (*known, *more) as error:
        if getattr(error, "error_code", None) in REFUSALS:
            raise login_refused(uri, str(error)) from error
        reason = next(iter(str(getattr(error, "orig", None) or error).splitlines()), repr(error)).rstrip(".")
        problem = without_passwords(f"{library} cannot open its store at {uri}: {reason}. ")
        raise StoreError(problem + advice.format(library=library)) from error


@contextmanager
def store_failures(store: "Store", advice: str) -> Iterator[None]:
    """Turn whatever the libraries below raise for a store that fails into one message; `advice` says what to do.

    What a mistake of ours makes them raise passes as it is, to be seen with its traceback.

    Raises:
        StoreError: the disk, the database or the server gave up.
    """
    try:
        yield
    except StudyError:
        raise  # Ours: a refusal must not wait for MLflow.
    except Exception as error:
        if (failure := _root_cause(error, store.root)) is None:
            raise
        raise StoreError(
            f"The store {_place(error, store)} gave up: {_reason(failure)}. "
            f"Expected it to take what is written. {advice}"
        ) from error


class StoreFailurePolicy:
    """Bear with a store that fails a worker once; not where it does so twice in a row, or twice to one trial."""

    def __init__(self) -> None:
        self._is_failing = False
        self._failed: set[str] = set()

    def has_answered(self) -> None:
        """Take note that a worker has written down what it has trained."""
        self._is_failing = False

    def has_failed(self, what: str, cause: str) -> None:
        """Take note that the store has failed the worker that trained `what`.

        Raises:
            StoreError: it has done so before.
        """
        is_lasting = self._is_failing or what in self._failed
        self._is_failing = True
        self._failed.add(what)
        if is_lasting:
            raise StoreError(
                f"The workers cannot write down what they have trained: {cause}. Expected the store to take it. "
                "No trial has lost an attempt by it. Free space, or see to the store; the same command goes on."
            )


def _place(error: Exception, store: "Store") -> str:
    """Name the part of a store that has failed."""
    from mlflow.exceptions import MlflowException
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, MlflowException) and not store.is_embedded:
        return without_passwords(store.tracking_uri)
    # What MLflow's own database raises comes as an exception of MLflow's.
    if store.database is not None and isinstance(error, StorageInternalError | SQLAlchemyError):
        return f"at {store.database}"
    return str(store.root)


def _root_cause(error: BaseException | None, root: Path) -> BaseException | None:
    """Return the store's own error among an error and its causes; None where it is a mistake of ours."""
    from mlflow.exceptions import MlflowException
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, StorageInternalError):
        return _root_cause(error.__cause__, root)
    if isinstance(error, MlflowException):
        cause = error.__cause__ or error.__context__
        if isinstance(cause, SQLAlchemyError | sqlite3.Error | OSError | MlflowException):
            return _root_cause(cause, root)
        # MLflow wraps what breaks inside it, too.
        is_mistake = error.error_code in MISTAKES and DELETED not in error.message
        return None if error.__cause__ or is_mistake else error
    if isinstance(error, SQLAlchemyError | sqlite3.Error):
        return error if type(error).__name__ in DATABASE_ERRORS else None
    return error if isinstance(error, OSError) and _is_of_store(error, root) else None


def _is_of_store(error: OSError, root: Path) -> bool:
    from filelock import Timeout
    from requests import RequestException

    if isinstance(error, RequestException | Timeout) or error.errno in DISK_ERRORS:
        return True
    return isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(root)


def _reason(failure: BaseException) -> str:
    from requests import RequestException

    text = str(getattr(failure, "orig", None) or failure) or repr(failure)
    if isinstance(failure, RequestException):
        said = re.search(r"\[Errno \d+\] ([\w ]+)", text)
        return f"no answer from the server ({said[1] if said else type(failure).__name__})"
    if isinstance(failure, OSError) and failure.strerror:
        text = failure.strerror + (f": {failure.filename}" if failure.filename else "")
    return without_passwords(text.splitlines()[0]).rstrip(".")
