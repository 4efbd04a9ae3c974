"""The promises of a store: one folder, two databases, usable by several processes at once."""

import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from optuna.storages import RDBStorage

from fashion_study.errors import ExitCode, StoreError
from fashion_study.store.store import Store, open_store
from tests.support.http_server import answering

OPEN = """
import sys
from fashion_study.store.store import open_store
store = open_store(sys.argv[1])
client = store.client()
print(store.experiment_id(client, "digits"), len(store.open_optuna_storage().get_all_studies()))
"""


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Give a store that three processes opened at once, when it was empty."""
    root = tmp_path_factory.mktemp("raced") / "store"
    command = [sys.executable, "-c", OPEN, str(root)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(*process.communicate(timeout=200), process.returncode) for process in processes]
    assert {(out, code) for out, _, code in ends} == {("1 0\n", 0)}, ends
    return open_store(root)


def test_several_processes_may_open_an_empty_store_at_once(raced: Store) -> None:
    client = raced.client()
    assert [experiment.name for experiment in client.search_experiments()].count("digits") == 1


@pytest.mark.parametrize("name", ["mlflow.db", "optuna.db"])
def test_both_databases_allow_readers_beside_a_writer(name: str, raced: Store) -> None:
    with closing(sqlite3.connect(raced.root / name)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_new_store_writes_through_to_the_disk(tmp_path: Path) -> None:
    # Making its tables does not wait for the disk; everything after it does.
    with open_store(tmp_path / "new").optuna_storage() as storage, storage.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    with closing(sqlite3.connect(tmp_path / "new" / "optuna.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_store_does_not_depend_on_the_working_directory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.root.parent)
    relative = open_store("a new store")
    assert relative == store
    assert relative.is_embedded

    monkeypatch.chdir(tmp_path)
    client = relative.client()
    run = client.create_run(relative.experiment_id(client, "digits"))
    client.log_text(run.info.run_id, "evidence", "note.txt")
    assert isinstance(relative.open_optuna_storage(), RDBStorage)

    assert list(tmp_path.iterdir()) == []
    (note,) = store.root.glob("artifacts/digits/**/note.txt")
    assert note.read_text() == "evidence"
    for path in (store.tracking_uri.removeprefix("sqlite:///"), store.trials_file):
        assert Path(path).is_absolute()


def test_opening_a_store_leaves_mlflow_s_default_alone(store: Store) -> None:
    before = mlflow.get_tracking_uri()
    store.client()
    assert mlflow.get_tracking_uri() == before


def test_an_experiment_is_made_once(store: Store) -> None:
    client = store.client()
    made = store.experiment_id(client, "fashion-mnist")
    assert store.experiment_id(client, "fashion-mnist") == made
    assert client.get_experiment(made).artifact_location == (store.root / "artifacts" / "fashion-mnist").as_uri()


def closed_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("status", [200, 400, 404])
def test_the_user_s_own_server_is_honoured(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(status) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        store = open_store(tmp_path)
        client = store.client()

    assert store.tracking_uri == client.tracking_uri == address
    assert not store.is_embedded
    assert store.trials_file == tmp_path / "optuna.db"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_server_is_refused_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")

    with pytest.raises(StoreError, match=f"http://127.0.0.1:{port} does not answer: Connection refused") as caught:
        open_store(tmp_path / "store")

    assert "secret" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_server_that_cannot_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(503) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(StoreError, match="it answers with 503"):
            open_store(tmp_path).client()


def test_a_relative_address_of_the_user_s_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own/mlflow.db")
    assert open_store("own").is_embedded
    elsewhere = open_store("another")
    assert elsewhere.tracking_uri == f"sqlite:///{tmp_path / 'own' / 'mlflow.db'}"
    assert not elsewhere.is_embedded

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own/mlflow.db?timeout=9")
    assert open_store("own").tracking_uri == f"{elsewhere.tracking_uri}?timeout=9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///:memory:")
    assert open_store("own").tracking_uri == "sqlite:///:memory:"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for root in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StoreError, match="--store") as caught:
            open_store(root)
        assert str(root) in str(caught.value)
        assert caught.value.exit_code is ExitCode.STORE


def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(StoreError, match="read-only"):
            open_store(tmp_path)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("library", ["mlflow", "optuna"])
def test_a_damaged_database_is_refused(library: str, tmp_path: Path) -> None:
    (tmp_path / f"{library}.db").write_text("This is no database, and was never one. " * 100)
    store = open_store(tmp_path)

    with pytest.raises(StoreError, match="not a database") as caught:
        store.client() if library == "mlflow" else store.open_optuna_storage()

    assert str(tmp_path / f"{library}.db") in str(caught.value)
    assert "--store" in str(caught.value)


def test_an_address_that_mlflow_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")

    with pytest.raises(StoreError, match="gopher://nowhere"):
        open_store(tmp_path).client()


def test_a_path_that_would_break_a_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="an invisible character"):
        open_store(tmp_path / "two\nlines")

    assert list(tmp_path.iterdir()) == []


def test_an_account_without_a_home_can_use_mlflow() -> None:
    # As in a container that is run as a user of no name.
    program = """
import os, pwd, sys
def unknown(who):
    raise KeyError(who)
pwd.getpwuid = pwd.getpwnam = unknown
os.environ.pop("HOME", None)
import fashion_study
import mlflow.environment_variables
"""
    subprocess.run([sys.executable, "-c", program], check=True)
