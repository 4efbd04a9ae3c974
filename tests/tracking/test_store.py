"""The promises of a store: one folder, two databases, usable by several processes at once."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from optuna.storages import RDBStorage

from fashion_study.errors import ExitCode, StoreError
from fashion_study.tracking.store import Store, open_store


def test_several_processes_may_open_an_empty_store_at_once(store: Store) -> None:
    client = store.client()
    assert [experiment.name for experiment in client.search_experiments()].count("digits") == 1


@pytest.mark.parametrize("name", ["mlflow.db", "optuna.db"])
def test_both_databases_let_readers_and_a_writer_work_side_by_side(name: str, store: Store) -> None:
    with closing(sqlite3.connect(store.root / name)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_everything_lies_in_the_folder_whatever_the_working_directory(
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
    assert isinstance(relative.optuna_storage(), RDBStorage)

    assert list(tmp_path.iterdir()) == []
    (note,) = store.root.glob("artifacts/digits/**/note.txt")
    assert note.read_text() == "evidence"
    for uri in (store.tracking_uri, store.optuna_uri):
        assert Path(uri.removeprefix("sqlite:///")).is_absolute()


def test_opening_a_store_leaves_the_default_of_this_process_alone(store: Store) -> None:
    before = mlflow.get_tracking_uri()
    store.client()
    assert mlflow.get_tracking_uri() == before


def test_an_experiment_is_made_once(store: Store) -> None:
    client = store.client()
    made = store.experiment_id(client, "fashion-mnist")
    assert store.experiment_id(client, "fashion-mnist") == made
    assert client.get_experiment(made).artifact_location == (store.root / "artifacts" / "fashion-mnist").as_uri()


def test_the_user_s_own_server_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    store = open_store(tmp_path)
    client = store.client()

    assert store.tracking_uri == client.tracking_uri == "http://127.0.0.1:9"
    assert not store.is_embedded
    assert store.optuna_uri == f"sqlite:///{tmp_path / 'optuna.db'}"
    assert list(tmp_path.iterdir()) == []


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
        store.client() if library == "mlflow" else store.optuna_storage()

    assert str(tmp_path / f"{library}.db") in str(caught.value)
    assert "--store" in str(caught.value)


def test_an_address_that_mlflow_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")

    with pytest.raises(StoreError, match="gopher://nowhere"):
        open_store(tmp_path).client()
