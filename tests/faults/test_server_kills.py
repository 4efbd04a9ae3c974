"""A study over the servers of a team, its coordinator or its database killed: one owner, nothing lost or repeated."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from benchmarks.servers import Postgres
from fashion_study.errors import ExitCode
from tests.faults.conftest import Launch
from tests.faults.launcher import Launcher, Life
from tests.faults.table import RecordFault
from tests.faults.test_processes import FIXED, fates, workers_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

TRIALS = 4
PATIENCE = 280


@pytest.fixture
def launcher(launch: Launch, on_servers: dict[str, str]) -> Launcher:
    """Launch on the servers; the worker of the second trial stops in its middle."""
    return launch(**on_servers, **fates(t1a1="stopped"))


@contextmanager
def running(
    launcher: Launcher, study: str, root: Path
) -> Iterator[tuple[BaseProcess, Callable[[], Life], psutil.Process]]:
    """Start a study, and wait until its worker has stopped in the middle of the second trial."""
    with launcher.living("run_study", *words(study), "--store", root) as (process, life):
        deadline = time.monotonic() + PATIENCE
        while not (workers := [each for each in workers_of(process.pid) if each.status() == psutil.STATUS_STOPPED]):
            assert process.is_alive(), life().shown
            assert time.monotonic() < deadline, life().shown
            time.sleep(0.05)
        assert "trial 001 epoch 1 of" in life().shown
        yield process, life, workers[0]


def words(study: str) -> tuple[str, ...]:
    return (*FIXED, "--workers", "1", "--trials", str(TRIALS), "--study", study)


def ends_whole(study: str, root: Path, launcher: Launcher, postgres: Postgres) -> None:
    """I2, I3, I5: the same command goes on to exactly its total, and nothing is left that a doctor would find."""
    done = launcher.start("run_study", *words(study), "--store", root)
    assert done.exit_code == ExitCode.DONE, done.shown
    trials = postgres.query(
        "SELECT number, state::text, (SELECT value_json FROM trial_user_attributes AS attribute "
        "WHERE attribute.trial_id = trials.trial_id AND key = 'run_id') FROM trials JOIN studies USING (study_id) "
        f"WHERE study_name = '{study}' ORDER BY number"
    )
    assert [number for number, *_ in trials] == list(range(TRIALS))
    assert {state for _, state, _ in trials} == {"COMPLETE"}
    assert len({run_id for *_, run_id in trials}) == TRIALS
    healthy = launcher.start("doctor", "--store", root)
    assert (healthy.exit_code, "Nothing is wrong" in healthy.shown) == (0, True), healthy.shown


def test_one_coordinator_per_study_and_after_a_kill_the_next_one(
    launcher: Launcher, postgres: Postgres, tmp_path: Path, record_fault: RecordFault
) -> None:
    # As from another machine.
    elsewhere = tmp_path / "other"
    with running(launcher, "killed", tmp_path / "one") as (first, _, _):
        # Stopped, it is still there when the other two commands have ended, and still in the middle.
        os.kill(first.pid or 0, signal.SIGSTOP)
        refused = launcher.start("run_study", *words("killed"), "--store", elsewhere)
        assert refused.exit_code == ExitCode.STORE, refused.shown
        assert f"is being run by process {first.pid} on " in refused.shown
        watched = launcher.start("doctor", "--fix", "--store", elsewhere)
        assert watched.exit_code == ExitCode.DONE, watched.shown
        assert f"Study killed is being run by process {first.pid} on " in watched.shown
        first.kill()
        first.join()

    found = launcher.start("doctor", "--store", elsewhere)
    assert found.exit_code == ExitCode.ANSWER_IS_NO, found.shown
    ends_whole("killed", elsewhere, launcher, postgres)
    record_fault("SIGKILL of a coordinator on servers, taken up from another folder", "I2 I3 I5 I6")


def test_a_study_ends_with_its_database_and_resumes_with_it(
    launcher: Launcher, postgres: Postgres, tmp_path: Path, record_fault: RecordFault
) -> None:
    # As a user may set it; without, it is two minutes.
    impatient = replace(launcher, environment={**launcher.environment, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"})
    with running(impatient, "without-a-database", tmp_path) as (process, life, worker):
        postgres.die()
        worker.send_signal(signal.SIGCONT)
        process.join(PATIENCE)
        failed = life()
    postgres.start()

    assert failed.exit_code == ExitCode.STORE, failed.shown
    assert failed.shown.count("Error: ") == 1, failed.shown
    assert "Traceback" not in failed.shown
    assert "the same command goes on" in failed.shown
    ends_whole("without-a-database", tmp_path, launcher, postgres)
    record_fault("PostgreSQL killed under a study", "I2 I3 I5 I6")


def test_a_study_does_not_go_on_where_its_runs_are_not(
    launch: Launch, on_servers: dict[str, str], tmp_path: Path
) -> None:
    on_both, away = launch(**on_servers), launch(**on_servers | {"MLFLOW_TRACKING_URI": ""})
    begun = on_both.start(
        "run_study", *FIXED, "--workers", "1", "--trials", "1", "--study", "moved", "--store", tmp_path
    )
    assert begun.exit_code == ExitCode.DONE, begun.shown

    embedded = away.start("run_study", *words("moved"), "--store", tmp_path)
    assert embedded.exit_code == ExitCode.STORE
    assert "Set MLFLOW_TRACKING_URI" in embedded.shown

    examined = away.start("doctor", "--fix", "--store", tmp_path)
    assert (examined.exit_code, "Study moved keeps its runs at http" in examined.shown) == (0, True), examined.shown
