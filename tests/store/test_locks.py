"""The promises of a lock: one owner at a time, which can be named; a dead process owns nothing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from optuna.storages import RDBStorage

from fashion_study.errors import StoreError
from fashion_study.store.locks import claim, sole_coordinator
from fashion_study.store.store import Store, open_store
from fashion_study.testing.memory import memory_storage
from tests.support.processes import started_process

HOLD = """
import sys
from pathlib import Path
from fashion_study.store.locks import claim
with claim(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


@pytest.fixture
def storage() -> RDBStorage:
    """Optuna's storage, which a lock in the store's folder does not use."""
    return memory_storage()


@contextmanager
def held(root: Path, study: str) -> Iterator[subprocess.Popen[str]]:
    """Let another process own the study while the block runs."""
    command = [sys.executable, "-c", HOLD, str(root), study]
    with started_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_coordinator_is_refused_by_the_first_s_name(store: Store, storage: RDBStorage) -> None:
    with held(store.root, "toy") as holder:
        with (
            pytest.raises(StoreError, match=f"process {holder.pid} ") as caught,
            sole_coordinator(store, storage, "toy"),
        ):
            pass
        assert sys.executable in str(caught.value)
        assert "--study" in str(caught.value)

        with sole_coordinator(store, storage, "another") as require_ownership:
            require_ownership()


def test_a_holder_that_is_killed_frees_the_study(store: Store, storage: RDBStorage) -> None:
    with held(store.root, "toy") as holder:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()

        with sole_coordinator(store, storage, "toy"):
            note = json.loads((store.root / "locks" / "toy.json").read_text())
            assert note["pid"] == os.getpid()


def test_a_holder_that_ends_frees_the_study(store: Store, storage: RDBStorage) -> None:
    for _ in range(2):
        with sole_coordinator(store, storage, "toy"):
            pass
    assert not (store.root / "locks" / "toy.json").exists()


def test_a_holder_without_metadata_is_another_process(store: Store, storage: RDBStorage) -> None:
    with held(store.root, "toy"):
        (store.root / "locks" / "toy.json").write_text("{}")

        with pytest.raises(StoreError, match="another process"), sole_coordinator(store, storage, "toy"):
            pass


@pytest.mark.parametrize(
    "word",
    ["", "{}", "[]", '{"pid": null, "started": 0}', '{"pid": -1, "started": 0}', '{"pid": 1e400, "started": 0}'],
)
def test_unreadable_metadata_name_no_process(word: str, tmp_path: Path) -> None:
    with held(tmp_path, "toy"):
        (tmp_path / "locks" / "toy.json").write_text(word)
        with claim(tmp_path, "toy") as holder:
            assert holder == "another process"


def test_metadata_of_an_earlier_process_name_no_process(tmp_path: Path) -> None:
    with held(tmp_path, "toy"):
        word = tmp_path / "locks" / "toy.json"
        known = json.loads(word.read_text())
        word.write_text(json.dumps(known | {"started": known["started"] - 60}))

        with claim(tmp_path, "toy") as holder:
            assert holder == "another process"


def test_metadata_of_a_dead_holder_lock_nothing(tmp_path: Path) -> None:
    with held(tmp_path, "toy") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert json.loads((tmp_path / "locks" / "toy.json").read_text())["pid"] == process.pid

    with claim(tmp_path, "toy") as holder:
        assert holder is None


@pytest.mark.parametrize("name", ["../../outside", "a/b", "n" * 400, "two\nlines", ""])
def test_a_name_that_is_a_path_is_locked_inside_the_store(name: str, tmp_path: Path) -> None:
    store = tmp_path / "deep" / "store"
    store.mkdir(parents=True)

    with claim(store, name) as first, claim(store, name) as second:
        assert first is None
        assert second is not None

    assert {path.parent for path in tmp_path.rglob("*.lock")} == {store / "locks"}
