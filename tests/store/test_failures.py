"""The promises about a failing store: it is told apart from a bug, and reported in one message."""

import errno
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from fashion_study.errors import BadInputError, StoreError
from fashion_study.store.failures import store_failures
from fashion_study.store.store import Store, open_store


def damage(path: Path) -> None:
    """Write something else over every page but the first, with which SQLite opens a database."""
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


def ask_a_damaged_mlflow(store: Store) -> None:
    client = store.client()
    with closing(sqlite3.connect(store.root / "mlflow.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(store.root / "mlflow.db")
    client.search_experiments()


def write_to_a_held_optuna(store: Store) -> None:
    store.open_optuna_storage()
    storage = RDBStorage(f"sqlite:///{store.trials_file}", engine_kwargs={"connect_args": {"timeout": 0.1}})
    with closing(sqlite3.connect(store.root / "optuna.db")) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        storage.create_new_study([StudyDirection.MAXIMIZE], "kept waiting")


def fill(_: Store) -> None:
    Path("/dev/full").write_text("more than fits")


def lose_the_folder(store: Store) -> None:
    (store.root / "artifacts" / "gone").mkdir()


def ask_a_server_that_is_gone(store: Store) -> None:
    away = Store(store.root, "http://127.0.0.1:9")
    from mlflow import MlflowClient

    MlflowClient(away.tracking_uri).search_experiments()


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (ask_a_damaged_mlflow, "malformed|not a database|disk I/O error"),
        (write_to_a_held_optuna, "database is locked"),
        (fill, "No space left on device"),
        (lose_the_folder, r"No such file or directory: .*artifacts/gone"),
        (ask_a_server_that_is_gone, r"no answer from the server \(Connection refused\)"),
    ],
)
def test_a_failing_store_is_reported_in_one_message(
    fail: Callable[[Store], None], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = open_store(tmp_path / "store")

    with (
        pytest.raises(StoreError, match=rf"gave up: .*({reason}).* Do this\.$") as caught,
        store_failures(store, "Do this."),
    ):
        fail(store)

    assert str(store.root) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def misuse_mlflow(store: Store) -> None:
    store.client().create_experiment("")


def break_a_constraint(store: Store) -> None:
    store.open_optuna_storage()
    with closing(sqlite3.connect(store.root / "optuna.db")) as connection:
        connection.execute("INSERT INTO trial_values (trial_value_id) VALUES (1)")


def open_a_file_that_is_not_there(_: Store) -> None:
    Path("a file of ours").read_text()


def blame_what_was_asked(_: Store) -> None:
    try:
        raise TypeError("not serializable")
    except TypeError as error:
        raise MlflowException(str(error)) from error


def end_a_pipe(_: Store) -> None:
    raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (misuse_mlflow, MlflowException),
        (break_a_constraint, sqlite3.IntegrityError),
        (open_a_file_that_is_not_there, FileNotFoundError),
        (blame_what_was_asked, MlflowException),
        (end_a_pipe, BrokenPipeError),
    ],
)
def test_a_bug_keeps_its_traceback(fail: Callable[[Store], None], error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error), store_failures(open_store(tmp_path), "Do this."):
        fail(open_store(tmp_path))


def test_an_error_with_a_message_of_its_own_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"^as it was$"), store_failures(open_store(tmp_path), "Do this."):
        raise BadInputError("as it was")


def test_a_deleted_run_is_named_with_how_to_bring_it_back(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    client = store.client()
    run_id = client.create_run(store.experiment_id(client, "digits")).info.run_id
    client.delete_run(run_id)

    advice = f"MLFLOW_TRACKING_URI={store.tracking_uri} mlflow runs restore --run-id {run_id}"
    with pytest.raises(StoreError, match=re.escape(advice)), store_failures(store, "Do this."):
        client.set_tag(run_id, "name", "value")


def test_a_run_deleted_for_good_is_named_and_no_disk_blamed(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    with (
        pytest.raises(StoreError, match=r"does not find .*'?abc'? not found.* experiments\.doctor"),
        store_failures(store, "Free space."),
    ):
        store.client().get_run("abc")


def test_the_cause_of_an_error_of_optuna_decides(tmp_path: Path) -> None:
    with pytest.raises(StorageInternalError), store_failures(open_store(tmp_path), "Do this."):
        raise StorageInternalError("something else") from ValueError("of ours")
