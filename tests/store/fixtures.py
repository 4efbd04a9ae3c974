"""The store that several tests share."""

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fashion_study.store.store import Store

OPEN = """
import sys
from fashion_study.store.store import open_store
store = open_store(sys.argv[1])
client = store.client()
print(store.experiment_id(client, "digits"), len(store.open_optuna_storage().get_all_studies()))
"""


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> "Store":
    """Give a store that four processes opened at once, when it was empty."""
    # Not above: what it sets for MLflow must not be there when the user's own settings are taken away.
    from fashion_study.store.store import open_store

    root = tmp_path_factory.mktemp("study") / "a new store"
    command = [sys.executable, "-c", OPEN, str(root)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    ends = [(*process.communicate(timeout=200), process.returncode) for process in processes]
    assert {(out, code) for out, _, code in ends} == {("1 0\n", 0)}, ends
    return open_store(root)
