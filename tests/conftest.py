"""What all tests share: nothing of the user's own stores, caches and settings."""

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from fashion_study.libraries import fix_environment

pytest_plugins = ["tests.deploy.fixtures", "tests.faults.table", "tests.store.fixtures", "tests.support.finished"]

# The longest files, which are begun first: the others fill the time that one process takes longer than the other.
LONGEST = (
    "test_walkthrough.py",
    "test_end_to_end.py",
    "test_processes.py",
    "test_study_signals.py",
    "deploy/test_study.py",
    "test_peers.py",
    "test_stopped_early.py",
    "test_promote.py",
    "browser/test_mlflow_ui.py",
    "test_ray_executor.py",
    "test_run_study_command.py",
    "test_trainer.py",
    "mlflow_ui/test_server.py",
    "deploy/test_ray.py",
    "test_ray_study.py",
    "test_reproduce_baseline.py",
)

# What a shell may have ignored for what it starts: a script's background SIGINT, nohup SIGHUP.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOG_IN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
OWN_SETTINGS = ("MLFLOW_", "OPTUNA_", "KERAS_", "PG", "RAY_")


def pytest_configure(config: pytest.Config) -> None:
    """Cut the tests and what they start off from the user, before TensorFlow and MLflow are imported."""
    # A crowded machine takes as long as it takes.
    hypothesis.settings.register_profile("patient", deadline=None)
    hypothesis.settings.load_profile("patient")
    for name in [name for name in os.environ if name.startswith(OWN_SETTINGS)]:
        del os.environ[name]
    for number in STOPPING:
        if signal.getsignal(number) is signal.SIG_IGN:
            # A handler ends with this process, what is ignored is handed on: this process alone goes on ignoring.
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _ignore)
    home = tempfile.TemporaryDirectory(prefix="fashion-study-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(home.cleanup)
    os.environ |= {
        "KERAS_HOME": str(Path(home.name) / "keras"),
        "MPLCONFIGDIR": str(Path(home.name) / "matplotlib"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    fix_environment()


def _ignore(_number: int, _frame: object) -> None: ...


def pytest_collectstart() -> None:
    """Search for no garbage while the tests import their libraries: none of it is, and to see that takes 5 s."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and leave what has been imported out of every search for garbage."""

    def rank(item: pytest.Item) -> int:
        return next((number for number, name in enumerate(LONGEST) if item.path.match(name)), len(LONGEST))

    items.sort(key=rank)
    gc.freeze()
    gc.enable()


@pytest.fixture
def fashion_mnist_dir() -> Path:
    """Give the folder of the four official files; a test that needs them is skipped where it is not set."""
    directory = os.environ.get("FASHION_MNIST_DIR")
    if not directory:
        pytest.skip("FASHION_MNIST_DIR is not set")
    return Path(directory)


@pytest.fixture(autouse=True)
def log_in_of_the_test_alone() -> Iterator[None]:
    """Take back the log-in that a store moves from an address into MLflow's own variables."""
    yield
    for name in LOG_IN:
        os.environ.pop(name, None)
