"""What the fault tests share: a real model for toy workers to log, an empty store to begin from, a place for lives."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

from fashion_study.store.store import open_store
from tests.faults.launcher import ROOT, Launcher, Life
from tests.faults.small_study import SMALL, STUDY, TOTAL

# So that a failure says what was found.
pytest.register_assert_rewrite("tests.faults.promises")

NewStore = Callable[[], Path]
Launch = Callable[..., Launcher]


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the model that toy workers log: once, for every process of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = shared / "toy-model"
    with FileLock(shared / "toy-model.lock"):
        if not folder.exists():
            command = [sys.executable, "-m", "tests.faults.toy_model", str(folder)]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store whose databases are migrated, which takes some seconds, to be copied."""
    store = open_store(tmp_path_factory.mktemp("empty") / "store")
    store.client()
    store.open_optuna_storage()
    return store.root


@pytest.fixture(scope="session")
def new_store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> NewStore:
    """Give the function that makes a store with empty databases."""

    def make() -> Path:
        root = tmp_path_factory.mktemp("store")
        for name in ("mlflow.db", "optuna.db"):
            with closing(sqlite3.connect(empty_store / name)) as source, closing(sqlite3.connect(root / name)) as copy:
                source.backup(copy)
        return root

    return make


@pytest.fixture(scope="session")
def launch(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Give the function that makes a launcher, with what its processes find in their environment."""
    return lambda **environment: Launcher(tmp_path_factory.mktemp("lives"), toy_model, environment)


@pytest.fixture(scope="session")
def whole(launch: Launch, new_store: NewStore) -> tuple[Life, object]:
    """Run the small study with nothing in its way; give its life, and what it came to."""
    from tests.faults.promises import Found, check, outcome

    root = new_store()
    life = launch().start("run_study", *SMALL, "--store", root)
    found = Found(root, STUDY)
    check(found, [life], TOTAL)
    return life, outcome(found)
