"""The promises of a store that is only read: it stays as it is, and nothing that was written to it is missed."""

import shutil
import sqlite3
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from fashion_study.errors import StoreError
from fashion_study.store.locks import claim
from fashion_study.store.reading import reading
from fashion_study.store.relocation import moves
from fashion_study.store.store import Store, open_store
from tests.store.test_locks import held
from tests.support.empty_store import empty_store
from tests.support.untouched import content, is_earlier, make_older, read_only


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = empty_store(tmp_path / "store")
    client = store.client()
    run = client.create_run(store.experiment_id(client, "digits"), run_name="kept")
    client.log_text(run.info.run_id, "evidence", "note.txt")
    store.open_optuna_storage().engine.dispose()
    return store


@pytest.fixture
def copied(store: Store, tmp_path: Path) -> Store:
    """Give a copy of the store, in which no process has a database open."""
    shutil.copytree(store.root, tmp_path / "copied")
    return open_store(tmp_path / "copied")


def runs(store: Store) -> list[str]:
    client = store.client()
    return [str(run.info.run_name) for run in client.search_runs([store.experiment_id(client, "digits")])]


def test_a_sound_store_is_read_itself(store: Store) -> None:
    with reading(store) as opened:
        assert opened == store


def test_an_older_store_is_read_from_copies_that_go(copied: Store, capsys: pytest.CaptureFixture[str]) -> None:
    make_older(copied.root)
    before = content(copied.root)
    with reading(copied) as opened:
        assert opened.copies is not None
        assert runs(opened) == ["kept"]
        opened.open_optuna_storage().engine.dispose()

    assert not opened.copies.exists()
    assert content(copied.root) == before
    assert is_earlier(copied.root)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("is_old", [False, True])
def test_a_read_only_store_is_read_from_copies(is_old: bool, copied: Store) -> None:
    if is_old:
        make_older(copied.root)
    with read_only(copied.root), reading(copied) as opened:
        assert runs(opened) == ["kept"]
        opened.open_optuna_storage().engine.dispose()
        assert moves(opened) == []
        client = opened.client()
        (run,) = client.search_runs([opened.experiment_id(client, "digits")])
        # In the copy the address is that of the folder in which the artifacts lie now.
        assert run.info.artifact_uri.startswith(copied.artifacts.as_uri())
        assert Path(client.download_artifacts(run.info.run_id, "note.txt")).read_text() == "evidence"
    assert len(moves(copied)) == 1


def test_addresses_are_as_they_are_where_that_is_wanted(copied: Store) -> None:
    with read_only(copied.root), reading(copied, rebases=False) as opened:
        assert moves(opened) == moves(copied)
        assert len(moves(opened)) == 1


def write(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA wal_autocheckpoint = 0")
    with database:
        database.execute("UPDATE runs SET name = 'late'")


def test_what_only_the_log_of_a_dead_process_has_is_read(store: Store, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    with closing(sqlite3.connect(store.root / "mlflow.db")) as database:
        write(database)
        # As an archive keeps it: without the memory that processes share.
        for name in ("mlflow.db", "mlflow.db-wal"):
            shutil.copy(store.root / name, archive)
    with read_only(archive), reading(open_store(archive, makes_folder=False)) as opened:
        assert runs(opened) == ["late"]


def test_a_store_that_another_process_writes_is_read(store: Store, tmp_path: Path) -> None:
    # The owner's folder can be written, the reader's view of it cannot.
    view = tmp_path / "view"
    view.mkdir()
    if subprocess.run(["mount", "--bind", "-o", "ro", store.root, view], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a folder")
    try:
        with (
            closing(sqlite3.connect(store.root / "mlflow.db")) as database,
            held(store.root, "toy") as owner,
            reading(open_store(view, makes_folder=False)) as opened,
        ):
            write(database)
            with reading(open_store(view, makes_folder=False)) as later:
                assert (runs(opened), runs(later)) == (["kept"], ["late"])
            with claim(view, "toy", only_looks=True) as holder, claim(view, "other", only_looks=True) as nobody:
                assert str(holder).startswith(f"process {owner.pid} ")
                assert nobody is None
    finally:
        subprocess.run(["umount", "--lazy", view], check=True)


@pytest.mark.parametrize("room", ["16k", None])
def test_without_room_for_copies_the_folder_is_named(
    room: str | None, copied: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if room is None:
        small.rmdir()
    elif subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", small], capture_output=True, check=False
    ).returncode:
        pytest.skip("this user may not mount a disk")
    monkeypatch.setenv("TMPDIR", str(small))
    monkeypatch.setattr(tempfile, "tempdir", str(small))
    make_older(copied.root)
    try:
        with pytest.raises(StoreError, match="TMPDIR") as caught, reading(copied):
            pass
        assert str(small) in str(caught.value)
        assert str(copied.root) in str(caught.value)
    finally:
        if room is not None:
            subprocess.run(["umount", "--lazy", small], check=True)
    assert is_earlier(copied.root)
