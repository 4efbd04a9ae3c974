"""What several test files look at: trained once for every process of pytest-xdist, copied by those that change it."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
# The first command of the tutorial.
REPRODUCE = "python -m experiments.reproduce_baseline --dataset digits --workers 1 --register --store demo"

# What a shell, a notebook or a home folder may hold, each of which would end a study or train to something else.
HOSTILE = {
    "KERAS_BACKEND": "torch",
    "KERAS_MAX_STEPS_PER_EPOCH": "1",
    "MLFLOW_ACTIVE_MODEL_ID": "m-123",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONWARNINGS": "error",
}
KERAS_JSON = '{"floatx": "float64", "image_data_format": "channels_first"}'


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder `name` of this run of the tests, filled by the first process that needs it."""
    own = factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, is_made = shared / name, shared / f"{name}.made"
    with FileLock(shared / f"{name}.lock"):
        if not is_made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            for database in folder.rglob("*.db"):
                with closing(sqlite3.connect(database)) as connection:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            is_made.touch()
    return folder


def copy_store(store: Path, root: Path) -> Path:
    """Copy the store of a study that has ended, with addresses of its own."""
    from mlflow.tracking._tracking_service import utils

    from fashion_study.store.relocation import moves, rebase
    from fashion_study.store.store import open_store

    # What SQLite keeps beside a database comes and goes with the connections of the process that made the store.
    shutil.copytree(store, root, ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    copied = open_store(root)
    for move in moves(copied):
        rebase(copied, move)
    shutil.rmtree(root / "backups")
    # MLflow keeps where a run's artifacts are for the whole process, by the run's id: another copy has the same runs.
    utils._artifact_repos_cache.clear()
    return root


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a small study to its end, without finalists: three trials are complete, one is paused."""

    def make(root: Path) -> None:
        from fashion_study import StudyConfig, run_study

        asked = {"space": "smoke", "dataset": "digits", "precision": "float32", "trials": 4, "workers": 1}
        run_study(StudyConfig.model_validate({**asked, "finalists": 0, "store": root}))

    return make_once(tmp_path_factory, "finished-study", make)


@pytest.fixture(scope="session")
def commanded_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a study with finalists as a command: `store`, what it prints in `output` and `errors`, `scratch` for it.

    In an environment that is none of its own: what it trains to is replayed without.
    """

    def make(folder: Path) -> None:
        scratch, keras_home = folder / "scratch", folder / "keras"
        scratch.mkdir()
        keras_home.mkdir()
        (keras_home / "keras.json").write_text(KERAS_JSON, encoding="utf-8")
        options = "--space smoke --dataset digits --precision float32 --trials 4 --workers 2 --finalists 2 --repeats 2"
        done = subprocess.run(
            [sys.executable, "-m", "experiments.run_study", *options.split(), "--store", str(folder / "store")],
            cwd=ROOT,
            env=os.environ | HOSTILE | {"TMPDIR": str(scratch), "KERAS_HOME": str(keras_home)},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for name, printed in {"output": done.stdout, "errors": done.stderr}.items():
            (folder / name).write_text(printed, encoding="utf-8")

    return make_once(tmp_path_factory, "commanded-study", make)


@pytest.fixture(scope="session")
def reproduction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reproduce the baseline with the tutorial's command: its store is `demo`, what it prints is in `printed`."""

    def make(folder: Path) -> None:
        done = subprocess.run(
            [sys.executable, *REPRODUCE.split()[1:]],
            cwd=folder,
            env=os.environ | {"COLUMNS": "100"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (folder / "printed").write_text(done.stdout, encoding="utf-8")

    return make_once(tmp_path_factory, "reproduction", make)
