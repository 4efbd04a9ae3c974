"""The store of a project: one folder with MLflow's database, Optuna's database and the artifacts."""

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from fashion_study.database_url import DatabaseUrl, trials_database_url
from fashion_study.errors import StoreError
from fashion_study.store.filesystems import mounts, refuse_network
from fashion_study.store.mlflow_server import check_server_reachable, hide_login, login_refused
from fashion_study.store.postgres import open_storage
from fashion_study.text import printable, without_passwords

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from optuna.storages import RDBStorage
    from sqlalchemy import Engine

# What MLflow would otherwise do behind a user's back in every process that imports it.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A server that is gone is asked again after 0, 2, 4, ... 64 s, for 126 s in all: long enough for a restart. One that
# takes the question and never answers, or whose machine is off, is given up after six minutes instead of twenty.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

# Longer than any write of ours takes, shorter than a user's patience: the MLflow UI may be reading.
BUSY_SECONDS = 60
# MLflow's names for what its server answers to a log-in that it does not take.
REFUSALS = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")


@dataclass(frozen=True)
class Store:
    """Name where the evidence lies. All addresses are absolute, so they hold from any working directory.

    `database` is PostgreSQL's where that has the trial storage; None: a file in the folder has it.
    """

    root: Path
    tracking_uri: str
    database: DatabaseUrl | None = None

    @property
    def is_embedded(self) -> bool:
        """Say whether MLflow's data lies in this folder rather than on a server of the user's."""
        return self.tracking_uri == _sqlite_uri(self.root / "mlflow.db")

    @property
    def tracked_at(self) -> str:
        """Name the place of the runs, without a password."""
        return without_passwords(self.tracking_uri)

    @property
    def trials_file(self) -> Path:
        """Return the file that has the trial storage where no database on a server has it."""
        return self.root / "optuna.db"

    @property
    def trials_at(self) -> str:
        """Name the place of the trial storage, without a password."""
        return str(self.database or self.root)

    @property
    def has_trials(self) -> bool:
        """Say whether there is a trial storage, or a server to ask for one; nothing is made."""
        return self.database is not None or self.trials_file.is_file()

    def client(self) -> "MlflowClient":
        """Open MLflow's client on this store, creating or migrating the embedded database first.

        Raises:
            StoreError: the database cannot be used, or the user's server does not answer or refuses the log-in.
        """
        self.require_server()
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        # It tells of migrations, and shows the traceback of what it then raises, which is said in a message.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        with _opening("MLflow", self.tracking_uri, MlflowException):
            if self.is_embedded:
                self._migrate_mlflow()
            return MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    def require_server(self) -> None:
        """Ask the user's server, where there is one, whether it is there and lets the user in.

        Raises:
            StoreError: it does not answer, or refuses the log-in.
        """
        if self.tracking_uri.startswith(("http://", "https://")):
            check_server_reachable(self.tracking_uri)

    def open_optuna_storage(self) -> "RDBStorage":
        """Open Optuna's storage on this store, creating or migrating its database first."""
        if self.database is not None:
            return open_storage(self.database)
        from optuna.storages import RDBStorage

        uri = _sqlite_uri(self.trials_file)
        with _opening("Optuna", uri), self._migration_lock("optuna"):
            _create_atomically(self.trials_file, lambda unfinished: RDBStorage(unfinished).engine)
            storage = RDBStorage(uri, engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}})
            _use_write_ahead_log(self.trials_file)
            return storage

    @contextmanager
    def optuna_storage(self) -> "Iterator[RDBStorage]":
        """Open Optuna's storage on this store while the block runs, and close its connections after it."""
        storage = self.open_optuna_storage()
        try:
            yield storage
        finally:
            storage.engine.dispose()

    def experiment_id(self, client: "MlflowClient", name: str) -> str:
        """Return the id of the MLflow experiment `name` (one per data set), made where there is none."""
        from mlflow.exceptions import MlflowException

        with _opening("MLflow", self.tracking_uri, MlflowException):
            if (found := client.get_experiment_by_name(name)) is not None:
                return str(found.experiment_id)
        location = (self.root / "artifacts" / name).as_uri() if self.is_embedded else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            # Another process made it in the meantime.
            if (found := client.get_experiment_by_name(name)) is not None:
                return str(found.experiment_id)
            raise

    def _migrate_mlflow(self) -> None:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        with self._migration_lock("mlflow"):
            artifacts = self.root / "artifacts"
            artifacts.mkdir(exist_ok=True)
            _create_atomically(self.root / "mlflow.db", lambda uri: SqlAlchemyStore(uri, artifacts.as_uri()).engine)
            SqlAlchemyStore(self.tracking_uri, artifacts.as_uri())
            _use_write_ahead_log(self.root / "mlflow.db")

    def _migration_lock(self, database: str) -> FileLock:
        # Several processes that migrate one empty database at once crash each other.
        return FileLock(self.root / f".{database}-migration.lock", timeout=BUSY_SECONDS)


def open_store(root: Path | str, *, study_db: str | None = None, makes_folder: bool = True) -> Store:
    """Make the folder where there is none, unless that is not wanted, and name what lies in it.

    `MLFLOW_TRACKING_URI` is honoured where the user set it: the runs then go to that server. The path of an SQLite
    database in it is taken from the working directory, as MLflow takes it, and made absolute. The trials lie in the
    PostgreSQL database that `study_db` or else `OPTUNA_STORAGE` names.

    Raises:
        BadInputError: `study_db` or `OPTUNA_STORAGE` is not the address of such a database.
        StoreError: the folder cannot be made or written, or lies on a network file system; the server does not
            answer, or refuses the log-in.
    """
    # Path.expanduser would fail for an account without a home.
    folder = Path(os.path.expanduser(root)).resolve()  # noqa: PTH111
    if any(character in "?%" or not character.isprintable() for character in str(folder)):
        raise StoreError(
            f"The store {printable(str(folder))} has a '?', a '%' or an invisible character in its path, which mean "
            "something else in a database's address or on a terminal. Expected a path without them. Name another "
            "folder with --store."
        )
    refuse_network(folder, mounts())
    hide_login()
    store = Store(
        root=folder,
        tracking_uri=_absolute(os.environ.get("MLFLOW_TRACKING_URI") or _sqlite_uri(folder / "mlflow.db")),
        database=trials_database_url(study_db),
    )
    if makes_folder:
        # Asked first: where no server answers, nothing is made.
        store.require_server()
        _make(folder)
    return store


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The store {folder} cannot be made: {error.strerror}. "
            "Expected a folder that may be written. Name another one with --store."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(
            f"The store {folder} is read-only. Expected a folder that may be written. "
            "Change its permissions, or name another one with --store."
        )


@contextmanager
def _opening(library: str, uri: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what the libraries below raise for a store that cannot be used into one message."""
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    # Optuna says with a RuntimeError that another version of it made the database.
    known: tuple[type[Exception], ...] = (SQLAlchemyError, CommandError, RuntimeError, OSError, sqlite3.Error, Timeout)
    try:
        yield
    except (*known, *more) as error:
        raise _cannot_open(library, uri, error) from error


def _cannot_open(library: str, uri: str, error: Exception) -> StoreError:
    if getattr(error, "error_code", None) in REFUSALS:
        return login_refused(uri, str(error))
    reason = next(iter(str(error).splitlines()), repr(error)).rstrip(".")
    return StoreError(
        without_passwords(f"{library} cannot open its store at {uri}: {reason}. ")
        + f"Expected a store that {library} made itself. "
        "Free space if it is full, restore it from a copy, or name another one with --store or MLFLOW_TRACKING_URI."
    )


def _sqlite_uri(path: Path) -> str:
    return f"sqlite:///{path}"


def _absolute(uri: str) -> str:
    """Return an address that means the same database from any working directory."""
    path, mark, query = uri.removeprefix("sqlite:///").partition("?")
    if not uri.startswith("sqlite:///") or path in ("", ":memory:") or path.startswith("file:"):
        return uri
    return f"{_sqlite_uri(Path(path).resolve())}{mark}{query}"


def _create_atomically(database: Path, make: Callable[[str], "Engine"]) -> None:
    """Make a database that is not there beside its place, and put it there once it is whole.

    Killed in the middle, a library would find tables that it did not expect, and refuse the database for ever.
    """
    if database.exists():
        return
    unfinished = database.with_name(f".{database.name}.part")
    for leftover in database.parent.glob(f"{unfinished.name}*"):
        leftover.unlink()
    with _synchronous_off():
        make(_sqlite_uri(unfinished)).dispose()
    with unfinished.open("rb+") as whole:
        os.fsync(whole.fileno())
    unfinished.replace(database)


@contextmanager
def _synchronous_off() -> Iterator[None]:
    """Let the SQLite connections that are opened meanwhile not wait for the disk.

    Hundreds of steps make MLflow's tables, and each would wait; of a database that nobody uses yet none needs to.
    """
    from sqlalchemy import Engine, event

    def relax(connection: object, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", relax)
    try:
        yield
    finally:
        event.remove(Engine, "connect", relax)


def _use_write_ahead_log(path: Path) -> None:
    """Let readers (the MLflow UI) and the one writer work side by side; the setting stays in the file."""
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(
            f"{path} stays in journal mode {mode!r}; expected 'wal'. "
            "The file system may not support it: put the store on a local disk with --store."
        )
