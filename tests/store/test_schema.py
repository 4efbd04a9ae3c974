"""The promises of a migration: a copy first, a line about it, all or nothing; a later schema is refused by its name."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from optuna.study import StudyDirection

from fashion_study.errors import StoreError
from fashion_study.store import schema
from fashion_study.store.reading import reading
from fashion_study.store.store import Store, open_store
from tests.support.empty_store import empty_store
from tests.support.untouched import EARLIER, make_older, revision


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a store with an experiment and a study of an earlier MLflow and Optuna."""
    store = empty_store(tmp_path / "store")
    store.experiment_id(store.client(), "digits")
    with store.optuna_storage() as storage:
        storage.create_new_study([StudyDirection.MAXIMIZE], "kept")
    make_older(store.root)
    return store.root


def is_kept(store: Store) -> bool:
    with store.optuna_storage() as storage:
        studies = [study.study_name for study in storage.get_all_studies()]
    return store.client().get_experiment_by_name("digits") is not None and studies == ["kept"]


def test_an_older_store_is_migrated_after_a_copy_and_says_so(root: Path) -> None:
    lines: list[str] = []
    store = open_store(root, notify=lines.append)
    assert is_kept(store)
    assert is_kept(store)

    copies = sorted((root / "backups").iterdir())
    assert [revision(copy) for copy in copies] == list(EARLIER.values())
    assert not any(schema.is_older(root / f"{library}.db", library) for library in schema.MIGRATIONS)
    assert len(lines) == 2
    for line in lines:
        assert sum(str(root / f"{library}.db") in line for library in EARLIER) == 1
        assert sum(str(copy) in line for copy in copies) == 1
    assert not list(root.glob(".*.part*"))


def test_a_command_without_an_observer_says_it_on_stderr(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_store(root).client()
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert f"{root / 'mlflow.db'} was of an earlier mlflow" in line


@pytest.mark.parametrize("step", ["migrate", "copy_database"])
def test_a_migration_that_is_cut_off_changes_nothing(step: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off while the prepared copy is migrated, or before that replaces the database."""
    right, calls = getattr(schema, step), []

    def cut_off(*arguments: object) -> None:
        right(*arguments)
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(schema, step, cut_off)
    with pytest.raises(KeyboardInterrupt):
        open_store(root).client()
    assert len(calls) == 1
    assert revision(root / "mlflow.db") == EARLIER["mlflow"]

    monkeypatch.undo()
    assert is_kept(open_store(root))


@pytest.mark.parametrize("library", list(EARLIER))
def test_the_database_of_a_later_library_is_named(library: str, tmp_path: Path) -> None:
    store = empty_store(tmp_path / "store")
    store.open_optuna_storage().engine.dispose()
    file = store.root / f"{library}.db"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'from-the-future'")

    def read() -> None:
        with reading(store):
            pass

    for use in (store.client if library == "mlflow" else store.open_optuna_storage, read):
        with pytest.raises(StoreError, match=f"a later {library} wrote it. Install that version") as caught:
            use()
        assert str(file) in str(caught.value)
        assert "from-the-future" in str(caught.value)


def test_the_file_in_mlflow_tracking_uri_is_migrated_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}?timeout=9")
    lines: list[str] = []
    store = open_store(root.parent / "elsewhere", notify=lines.append)
    with reading(store) as read:
        assert read.client().get_experiment_by_name("digits") is not None
    assert revision(root / "mlflow.db") == EARLIER["mlflow"]

    assert store.client().get_experiment_by_name("digits") is not None
    assert len(lines) == 1
    assert len(list((root / "backups").iterdir())) == 1
