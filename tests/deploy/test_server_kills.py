"""A study over the servers of a team, its coordinator or its database killed: one owner, nothing lost or repeated."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.servers import Postgres, TeamMlflow
from fashion_study.errors import ExitCode
from tests.deploy.conftest import Command
from tests.faults.table import RecordFault

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

FIXED = ("--space", "smoke", "--dataset", "digits", "--workers", "1", "--precision", "float32", "--finalists", "0")
TRIALS = 4
PATIENCE = 280


@contextmanager
def running(study: str, folder: Path, environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a study, and wait until its second trial has begun."""
    folder.mkdir()
    shown = folder / "shown"
    with shown.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.run_study", *words(study)],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while "trial 001 started" not in shown.read_text():
            assert process.poll() is None, shown.read_text()
            assert time.monotonic() < deadline, shown.read_text()
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def words(study: str) -> tuple[str, ...]:
    return (*FIXED, "--trials", str(TRIALS), "--study", study)


def ends_whole(study: str, folder: Path, run: Command, postgres: Postgres) -> None:
    """I2, I3, I5: the same command goes on to exactly its total, and nothing is left that a doctor would find."""
    done = run("run_study", *words(study), cwd=folder)
    assert done.returncode == ExitCode.DONE, done.stdout + done.stderr
    trials = postgres.query(
        "SELECT number, state::text, (SELECT value_json FROM trial_user_attributes AS attribute "
        "WHERE attribute.trial_id = trials.trial_id AND key = 'run_id') FROM trials JOIN studies USING (study_id) "
        f"WHERE study_name = '{study}' ORDER BY number"
    )
    assert [number for number, *_ in trials] == list(range(TRIALS))
    assert {state for _, state, _ in trials} <= {"COMPLETE", "PRUNED"}
    assert len({run_id for *_, run_id in trials}) == TRIALS
    healthy = run("doctor", cwd=folder)
    assert (healthy.returncode, "Nothing is wrong" in healthy.stdout) == (0, True), healthy.stdout + healthy.stderr


def test_one_coordinator_per_study_and_after_a_kill_the_next_one(
    run: Command, on_servers: dict[str, str], postgres: Postgres, team: TeamMlflow, tmp_path: Path,
    record_fault: RecordFault,
) -> None:  # fmt: skip
    with running("killed", tmp_path / "one", on_servers) as first:
        # Stopped, it is still there when the other two commands have ended, and still in the middle.
        first.send_signal(signal.SIGSTOP)
        (tmp_path / "other").mkdir()
        refused = run("run_study", *words("killed"), cwd=tmp_path / "other")
        assert refused.returncode == ExitCode.STORE, refused.stdout + refused.stderr
        assert f"is being run by process {first.pid} on " in refused.stderr
        watched = run("doctor", "--fix", cwd=tmp_path / "other")
        assert watched.returncode == ExitCode.DONE, watched.stdout + watched.stderr
        assert f"Study killed is being run by process {first.pid} on " in watched.stdout
        first.send_signal(signal.SIGKILL)
        first.wait()

    found = run("doctor", cwd=tmp_path / "other")
    assert found.returncode == ExitCode.ANSWER_IS_NO, found.stdout + found.stderr
    # From another folder, as from another machine.
    ends_whole("killed", tmp_path / "other", run, postgres)
    assert str(team.port) in on_servers["MLFLOW_TRACKING_URI"]
    record_fault("SIGKILL of a coordinator on servers, taken up from another folder", "I2 I3 I5 I6")


def test_a_study_ends_with_its_database_and_resumes_with_it(
    run: Command, on_servers: dict[str, str], postgres: Postgres, tmp_path: Path, record_fault: RecordFault
) -> None:
    with running("without-a-database", tmp_path / "one", on_servers) as process:
        postgres.die()
        code = process.wait(PATIENCE)
    shown = (tmp_path / "one" / "shown").read_text()
    postgres.start()

    assert code == ExitCode.STORE, shown
    assert shown.count("Error: ") == 1, shown
    assert "Traceback" not in shown
    assert "the same command goes on" in shown
    ends_whole("without-a-database", tmp_path / "one", run, postgres)
    record_fault("PostgreSQL killed under a study", "I2 I3 I5 I6")


def test_a_study_does_not_go_on_where_its_runs_are_not(run: Command, tmp_path: Path) -> None:
    away = {"MLFLOW_TRACKING_URI": ""}
    begun = run("run_study", *FIXED, "--trials", "1", "--study", "moved", cwd=tmp_path)
    assert begun.returncode == ExitCode.DONE, begun.stderr

    embedded = run("run_study", *words("moved"), cwd=tmp_path, environment=away)
    assert embedded.returncode == ExitCode.STORE
    assert "Set MLFLOW_TRACKING_URI" in embedded.stderr

    examined = run("doctor", "--fix", cwd=tmp_path, environment=away)
    assert (examined.returncode, "Study moved keeps its runs at http" in examined.stdout) == (0, True), examined.stderr
