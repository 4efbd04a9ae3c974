"""The store of a project: one folder with MLflow's database, Optuna's database and the artifacts."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fashion_study.database_url import VARIABLE, DatabaseUrl, trials_database_url
from fashion_study.errors import StoreError
from fashion_study.paths import check_temporary_folder, expanded
from fashion_study.store.failures import opening, restoring
from fashion_study.store.mlflow_server import hide_login
from fashion_study.store.postgres import open_storage
from fashion_study.store.schema import bring_up_to_date, open_database, to_stderr
from fashion_study.store.sqlite import BUSY_SECONDS, absolute_uri, database_file, mounts, refuse_network, sqlite_uri
from fashion_study.store.tracking_uri import check_address, check_reachable
from fashion_study.text import printable, without_passwords

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from optuna.storages import RDBStorage

RUNS, TRIALS = "mlflow.db", "optuna.db"


@dataclass(frozen=True)
class Store:
    """The place of a project's runs and trials. Its addresses are absolute: they hold from any working directory.

    `database` is the PostgreSQL database with the trial storage; None: a file in the folder has it. `copies` is a
    folder with copies of the database files, which are read in their place. `notify` takes a line on each migration.
    """

    root: Path
    tracking_uri: str
    database: DatabaseUrl | None = None
    copies: Path | None = None
    notify: Callable[[str], None] = field(default=to_stderr, compare=False, repr=False)

    @property
    def is_embedded(self) -> bool:
        """Say whether MLflow's data lies in this folder rather than on a server of the user's."""
        return self.tracking_uri == sqlite_uri(self.root / RUNS)

    @property
    def tracked_at(self) -> str:
        """Return the place of the runs, without a password."""
        return without_passwords(self.tracking_uri)

    @property
    def artifacts(self) -> Path:
        """Return the folder with the artifacts, where no server of the user's keeps them."""
        return self.root / "artifacts"

    def checkpoints(self, study: str) -> Path:
        """Return the folder with the checkpoints of a study."""
        return self.root / "checkpoints" / study

    @property
    def is_writable(self) -> bool:
        """Say whether files can be made in the folder."""
        return os.access(self.root, os.W_OK | os.X_OK)

    @property
    def databases(self) -> Path:
        """Return the folder with the database files."""
        return self.copies or self.root

    @property
    def runs_file(self) -> Path | None:
        """Return the file with the runs, None where they are on a server."""
        file = database_file(self.tracking_uri)
        return file and (self.copies / RUNS if self.copies else file)

    @property
    def trials_file(self) -> Path:
        """Return the file with the trial storage, where no database server has it."""
        return self.databases / TRIALS

    @property
    def has_trials(self) -> bool:
        """Say whether there is a trial storage, or a server to ask for one; nothing is made."""
        return self.database is not None or self.trials_file.is_file()

    def client(self) -> "MlflowClient":
        """Open MLflow's client on this store, creating the embedded database or migrating the file first.

        Raises:
            StoreError: the database cannot be used, or the user's server does not answer or refuses the log-in.
        """
        check_reachable(self.tracking_uri)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        # It logs migrations, and the traceback of an error that is raised as well.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        with opening("MLflow", self.tracking_uri, MlflowException):
            if self.is_embedded and self.copies is None:
                from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

                self.artifacts.mkdir(exist_ok=True)
                make = partial(SqlAlchemyStore, default_artifact_root=self.artifacts.as_uri())
                open_database(self.root / RUNS, "mlflow", make, self.notify)
            elif self.runs_file and self.runs_file.is_file():
                bring_up_to_date(self.runs_file, "mlflow", self.notify)
            uri = sqlite_uri(self.copies / RUNS) if self.copies and self.runs_file else self.tracking_uri
            return MlflowClient(tracking_uri=uri, registry_uri=uri)

    def open_optuna_storage(self) -> "RDBStorage":
        """Open Optuna's storage on this store, creating or migrating its database first."""
        if self.database is not None:
            return open_storage(self.database)
        from optuna.storages import RDBStorage

        options = {"connect_args": {"timeout": BUSY_SECONDS}}
        with opening("Optuna", sqlite_uri(self.trials_file)):
            make = partial(RDBStorage, engine_kwargs=options)
            return open_database(self.trials_file, "optuna", make, self.notify)

    @contextmanager
    def optuna_storage(self) -> "Iterator[RDBStorage]":
        """Open Optuna's storage on this store while the block runs, and close its connections after it."""
        storage = self.open_optuna_storage()
        try:
            yield storage
        finally:
            storage.engine.dispose()

    def experiment_id(self, client: "MlflowClient", name: str, known: str | None = None) -> str:
        """Return the id of the MLflow experiment `name` (one per data set), made where there is none.

        With a `known` id it is that one, whatever it is called by now.

        Raises:
            StoreError: it is deleted in MLflow.
        """
        from mlflow.exceptions import MlflowException

        with opening("MLflow", self.tracking_uri, MlflowException):
            found = client.get_experiment_by_name(name) if known is None else client.get_experiment(known)
        if found is None:
            location = (self.artifacts / name).as_uri() if self.is_embedded else None
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except MlflowException:
                # Another process made it in the meantime.
                if (found := client.get_experiment_by_name(name)) is None:
                    raise
        experiment = str(found.experiment_id)
        if found.lifecycle_stage != "active":
            raise StoreError(
                f"The experiment {printable(found.name)!r} (id {experiment}) at {self.tracked_at} is deleted in MLflow "
                f"with its runs. Expected it to be there. {restoring('experiment', experiment, self)}"
            )
        return experiment


def open_store(
    root: Path | str,
    *,
    study_db: str | None = None,
    makes_folder: bool = True,
    has_trials: bool = True,
    notify: Callable[[str], None] = to_stderr,
) -> Store:
    """Return the store in a folder, which is made where there is none, unless that is not wanted.

    Where `MLFLOW_TRACKING_URI` is set, the runs go there; the path of an SQLite database in it is taken from the
    working directory, as MLflow takes it. The trial storage lies in the PostgreSQL database that `study_db` or else
    `OPTUNA_STORAGE` names; without `has_trials`, for a command that reads none, neither is looked at.

    Raises:
        BadInputError: `study_db` or `OPTUNA_STORAGE` is not the address of such a database.
        StoreError: the folder cannot be made or written, or lies on a network file system; the server or database of
            `MLFLOW_TRACKING_URI` cannot be used; there is no room for temporary files.
    """
    folder = expanded(root).resolve()
    if any(character in "?%" or not character.isprintable() for character in str(folder)):
        raise StoreError(
            f"The store {printable(str(folder))} has a '?', a '%' or an invisible character in its path, which mean "
            "something else in a database's address or on a terminal. Expected a path without them. Name another "
            "folder with --store."
        )
    refuse_network(folder, mounts())
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        check_address(uri)
    hide_login()
    check_temporary_folder()
    tracking_uri = absolute_uri(os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(folder / RUNS))
    store = Store(folder, tracking_uri, trials_database_url(study_db) if has_trials else None, notify=notify)
    if makes_folder:
        # Before the folder: where no server answers, nothing is made.
        check_reachable(tracking_uri)
        _make(folder)
        _require_writable(store)
    return store


def find_store(
    root: Path | str, needs: Literal["runs", "trials", "either", "both"] = "runs", writes: str | None = None
) -> Store:
    """Return the store of an earlier study; where there is none, nothing is made.

    `needs` is what must be in the folder, or on a server that `MLFLOW_TRACKING_URI` or `OPTUNA_STORAGE` names; with
    "both" the trials may be missing. For "runs" alone, nothing is said of a wrong `OPTUNA_STORAGE`. `writes` says what
    the command writes into the folder, None for nothing: then it may be read-only.

    Raises:
        StoreError: it is not there, or the folder cannot be read, or not be written.
    """
    folder = expanded(root)
    files = {"runs": (RUNS,), "trials": (TRIALS,), "either": (RUNS, TRIALS), "both": (RUNS,)}[needs]
    has_runs_server, has_trials_server = (bool(os.environ.get(name)) for name in ("MLFLOW_TRACKING_URI", VARIABLE))
    try:
        has_folder, has_file = folder.is_dir(), any((folder / name).is_file() for name in files)
        has_server = {
            "runs": has_runs_server,
            "both": has_runs_server,
            "trials": has_trials_server,
            "either": has_runs_server and (has_folder or has_trials_server),
        }[needs]
        missing = "" if has_file or has_server else f"it has no {' and no '.join(files)}"
    except OSError as error:
        missing = f"it cannot be looked into: {error.strerror}"
    if missing:
        raise StoreError(
            f"There is no store in {printable(str(folder))}: {missing}. Expected the folder of an earlier study. "
            "Run one with python -m experiments.run_study, or name its folder with --store."
        )
    store = open_store(root, makes_folder=False, has_trials=needs != "runs")
    if has_folder:
        check_reachable(store.tracking_uri)
        if writes is not None:
            _require_writable(store, f": {writes}")
    return store


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The store {folder} cannot be made: {error.strerror}. "
            "Expected a folder that may be written. Name another one with --store."
        ) from error


def _require_writable(store: Store, what_for: str = "") -> None:
    if not store.is_writable:
        raise StoreError(
            f"The store {store.root} is read-only. Expected a folder that may be written{what_for}. "
            "Change its permissions or how it is mounted, or name another one with --store."
        )
