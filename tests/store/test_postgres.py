"""The promises of PostgreSQL: one owner of a study among all machines, one connection, one message."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from benchmarks.servers import Postgres
from fashion_study.errors import ExitCode, StoreError
from fashion_study.store.locks import claim_study, sole_coordinator
from fashion_study.store.store import Store, open_store
from fashion_study.store.trials import TrialStorage
from tests.support.processes import started_process

HOLD = """
import sys
from fashion_study.store.store import open_store
from fashion_study.store.locks import sole_coordinator
store = open_store(sys.argv[1])
with store.optuna_storage() as storage, sole_coordinator(store, storage, sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""
PATIENCE = 60
OURS = "FROM pg_stat_activity WHERE usename = 'optuna' AND pid <> pg_backend_pid()"


@pytest.fixture
def store(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PGPASSWORD", postgres.passwords["optuna"])
    return open_store(tmp_path / "here", study_db=postgres.address())


def see_all_go(postgres: Postgres, condition: str = "") -> None:
    """Wait until the server has noticed that our connections are closed."""
    give_up = time.monotonic() + PATIENCE
    while postgres.query(f"SELECT count(*) {OURS} {condition}") != [(0,)]:
        assert time.monotonic() < give_up
        time.sleep(0.05)


@contextmanager
def held(store: Store, study: str) -> Iterator[subprocess.Popen[str]]:
    """Let another process own a study, in another folder, as it would from another machine."""
    assert store.database is not None
    command = [sys.executable, "-c", HOLD, str(store.root.with_name("there")), study]
    environment = os.environ | {"OPTUNA_STORAGE": store.database.uri}
    with started_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_coordinator_of_any_machine_is_refused(store: Store, postgres: Postgres) -> None:
    with held(store, "toy") as holder, store.optuna_storage() as storage:
        with (
            pytest.raises(StoreError, match=f"process {holder.pid} on {socket.gethostname()} ") as caught,
            sole_coordinator(store, storage, "toy"),
        ):
            pass
        assert "connected since 2" in str(caught.value)
        assert "--study" in str(caught.value)

        with sole_coordinator(store, storage, "another"):
            pass
        holder.kill()
        holder.wait()
        see_all_go(postgres, f"AND application_name LIKE '%process {holder.pid} on %'")
        with sole_coordinator(store, storage, "toy"):
            pass


def test_a_study_is_free_again_when_its_owner_is_done(store: Store) -> None:
    with store.optuna_storage() as one, store.optuna_storage() as other:
        with claim_study(store, one, "toy") as holder, claim_study(store, other, "toy") as refused:
            assert holder is None
            assert refused is not None
        with claim_study(store, other, "toy") as holder:
            assert holder is None


def test_a_trial_storage_has_one_connection_and_closes_it(store: Store, postgres: Postgres) -> None:
    see_all_go(postgres)
    with store.optuna_storage() as storage, sole_coordinator(store, storage, "toy"):
        trial_storage = TrialStorage(storage, "connections")
        trial_storage.set_attrs(something=1)
        assert trial_storage.counted() == 0
        assert postgres.query(f"SELECT count(*) {OURS}") == [(1,)]
    see_all_go(postgres)


def test_a_lost_connection_is_noticed_and_never_made_again(store: Store, postgres: Postgres) -> None:
    with store.optuna_storage() as storage, sole_coordinator(store, storage, "lost") as require_ownership:
        trial_storage = TrialStorage(storage, "lost")
        require_ownership()
        postgres.query(f"SELECT pg_terminate_backend(pid, 60000) {OURS}")

        with pytest.raises(StoreError, match="the same command goes on"):
            require_ownership()
        with pytest.raises(StoreError, match="is lost"):
            trial_storage.set_attrs(something=1)
        with store.optuna_storage() as other, sole_coordinator(store, other, "lost"):
            assert "something" not in TrialStorage(other, "lost").attrs


def test_several_processes_may_open_an_empty_database_at_once(postgres: Postgres, tmp_path: Path) -> None:
    tables = postgres.query(
        "SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables WHERE tableowner = 'optuna'"
    )
    if tables[0][0]:
        postgres.query(f"DROP TABLE {tables[0][0]} CASCADE")
    environment = os.environ | {
        "OPTUNA_STORAGE": postgres.address(),
        "PGPASSWORD": postgres.passwords["optuna"],
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / str(number)), str(number)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(3)
    ]
    ends = [(*process.communicate(timeout=200), process.returncode) for process in processes]
    assert {(out, code) for out, _, code in ends} == {("held\n", 0)}, ends


def closed_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def refusal(address: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPTUNA_STORAGE", address)
    with pytest.raises(StoreError) as caught:
        open_store(root).open_optuna_storage()
    assert caught.value.exit_code is ExitCode.STORE
    assert "sesame" not in str(caught.value)
    return str(caught.value)


def test_a_server_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(f"postgresql://ana:sesame@127.0.0.1:{closed_port()}/optuna", tmp_path, monkeypatch)
    assert "Connection refused" in said


def test_a_wrong_password_and_a_closed_database_are_refused(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = postgres.address().replace("optuna@", "optuna:sesame@")
    assert "password authentication failed" in refusal(address, tmp_path, monkeypatch)

    monkeypatch.setenv("PGPASSWORD", postgres.passwords["optuna"])
    assert "permission denied" in refusal(postgres.address("mlflow"), tmp_path, monkeypatch)
