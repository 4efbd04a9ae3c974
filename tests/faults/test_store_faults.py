"""A store that fails while a study runs: the study waits, or ends with one message; nothing that was shown is lost."""

import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from fashion_study.errors import ExitCode
from fashion_study.mlflow_ui.server import choose_port
from fashion_study.store.trials import MAX_RETRIES
from tests.faults.conftest import Launch, NewStore
from tests.faults.journal import JOURNAL
from tests.faults.launcher import Launcher, Life
from tests.faults.mlflow_server import MlflowServer
from tests.faults.promises import Found, check
from tests.faults.table import RecordFault
from tests.support.processes import ProcessList

pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]

STUDY = "digits-smoke"
TRIALS = 3
FIXED = ("--space", "smoke", "--dataset", "digits", "--precision", "float32", "--workers", "1")
SMALL = (*FIXED, "--trials", str(TRIALS), "--finalists", "1", "--repeats", "1")
# Not I7: an attempt that the store has failed is tried once more before the study ends.
PROMISES = "I1 I2 I3 I4 I5 I6 I8"
WORKER = "tests.faults.answering_worker"
KIBIBYTE = 1024
# Longer than SQLite waits of its own accord.
HELD_SECONDS = 10
PATIENCE = 240


class Disk:
    """A disk of a few megabytes that can be full or read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def leave(self, room: int) -> None:
        """Fill the disk up to so many bytes."""
        free = os.statvfs(self.folder)
        with self._ballast.open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_bsize - room)

    def clear(self) -> None:
        self._ballast.unlink()

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], check=True)


@contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def launcher(launch: Launch) -> Launcher:
    return replace(launch(), worker=WORKER)


def says_what_failed(life: Life, *words: str) -> None:
    """I6 and I8: one message with its exit code, and no traceback; no worker is left."""
    assert life.exit_code == ExitCode.STORE, life.shown
    assert life.shown.count("Error: ") == 1, life.shown
    assert "Traceback" not in life.shown, life.shown
    for word in words:
        assert word in life.shown, life.shown


def left_over(launcher: Launcher) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(JOURNAL, "").startswith(str(launcher.folder)) and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue
    return found


def ends_well(root: Path, lives: list[Life]) -> None:
    check(Found(root, STUDY, workers=2), lives, TRIALS)


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_full_disk_ends_the_study_and_with_space_it_goes_on(
    tmp_path: Path, launcher: Launcher, new_store: NewStore, record_fault: RecordFault, is_full: bool
) -> None:
    times = 0
    for room in range(0, 4096, 48) if is_full else (0, 300, 600):
        # A disk of its own: MLflow's client in this process keeps the last one's database open, and so its room taken.
        with mounted(tmp_path / f"disk-{room}") as disk:
            root = disk.folder / "store"
            shutil.copytree(new_store(), root)
            disk.leave(room * KIBIBYTE)
            failed = launcher.start("run_study", *SMALL, "--store", root)
            disk.clear()
            if failed.exit_code == ExitCode.DONE:
                assert times
                break
            says_what_failed(failed, str(root), "ree space")
            assert re.search("disk is full|disk I/O error|No space left", failed.shown), failed.shown
            assert left_over(launcher) == []
            ends_well(root, [failed, launcher.start("run_study", *SMALL, "--store", root)])
        times += 1

    record_fault("disk full while anything is written", PROMISES, times)


def test_a_disk_full_for_artifacts_costs_no_trial_an_attempt(
    launcher: Launcher, new_store: NewStore, record_fault: RecordFault
) -> None:
    root = new_store()
    # A pruned trial writes next to nothing, which a full disk still takes.
    words = (*SMALL, "--pruner", "none", "--store", root)
    with mounted(root / "artifacts") as disk:
        lives = []
        for _ in range(MAX_RETRIES + 1):
            disk.leave(24 * KIBIBYTE)
            lives.append(launcher.start("run_study", *words))
            disk.clear()
            says_what_failed(lives[-1], "No space left", "same command")
        waiting = Found(root, STUDY).trials
        assert {trial.state.name for trial in waiting} == {"WAITING"}

        lives.append(launcher.start("run_study", *words))

        ends_well(root, lives)
        assert {trial.state.name for trial in Found(root, STUDY).trials} == {"COMPLETE"}
    record_fault("disk full while workers write figures and models", PROMISES, len(lives) - 1)


def test_a_read_only_store_is_refused_at_once(
    disk: Disk, launcher: Launcher, new_store: NewStore, record_fault: RecordFault
) -> None:
    root = disk.folder / "store"
    shutil.copytree(new_store(), root)
    disk.remount("ro")
    refused = launcher.start("run_study", *SMALL, "--store", root)
    disk.remount("rw")

    says_what_failed(refused, str(root), "read-only")
    ends_well(root, [refused, launcher.start("run_study", *SMALL, "--store", root)])
    record_fault("read-only store", PROMISES)


@pytest.mark.parametrize(
    ("lock", "turns"),
    [("reader", [("mlflow.db", "optuna.db")]), ("writer", [("mlflow.db",), ("optuna.db",)])],
    ids=["reader", "writer"],
)
def test_a_study_waits_for_whoever_holds_a_database(
    lock: str, turns: list[tuple[str, ...]], launcher: Launcher, new_store: NewStore, record_fault: RecordFault
) -> None:
    root = new_store()
    with launcher.living("run_study", *SMALL, "--store", root) as (process, life):
        until(lambda: bool(life().begun()))
        for names in turns:
            with ExitStack() as holding:
                for name in names:
                    held = sqlite3.connect(root / name, timeout=PATIENCE, isolation_level=None)
                    holding.enter_context(closing(held))
                    held.execute("BEGIN" if lock == "reader" else "BEGIN EXCLUSIVE")
                    held.execute("SELECT count(*) FROM alembic_version").fetchall()
                # A reader is in nobody's way.
                process.join(None if lock == "reader" else HELD_SECONDS)
                assert process.is_alive() == (lock == "writer")
        process.join()

        ends_well(root, [life()])
    how_long = "throughout" if lock == "reader" else f"for {HELD_SECONDS} s"
    record_fault(f"a {lock} holding a database {how_long}", PROMISES, times=2)


@contextmanager
def serving(root: Path) -> Iterator[MlflowServer]:
    # None that the kernel gives to connections: while the server is away nobody else may have it.
    server = MlflowServer(root, choose_port(5100))
    try:
        server.start()
        yield server
    finally:
        server.kill()


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "8kq2-canary-of-the-environment",
    "MLFLOW_TRACKING_PASSWORD": "8kq2-canary-of-mlflow",
}
PASSWORD = "8kq2-canary-of-the-address"


@dataclass(frozen=True, eq=False)
class Outage:
    """A study whose server was gone for some seconds, a start after it was gone for good, and every command line."""

    root: Path
    seconds: int
    done: Life
    refused: Life
    commands: set[str]


@pytest.fixture(scope="module")
def outage(launch: Launch, new_store: NewStore, is_full: bool) -> Outage:
    root, seconds = new_store(), 30 if is_full else 5
    launcher = replace(launch(), worker=WORKER)
    with serving(root) as mlflow, ProcessList() as processes:
        address = {"MLFLOW_TRACKING_URI": f"http://me:{PASSWORD}@127.0.0.1:{mlflow.port}"}
        # Longer than the two minutes of the default: on a busy machine the server itself takes as long to start.
        patient = {**SECRETS, **address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "10", "TOY_EPOCH": "1"}
        with replace(launcher, environment=patient).living("run_study", *SMALL, "--store", root) as (process, life):
            until(lambda: bool(life().begun()))
            mlflow.kill()
            time.sleep(seconds)
            mlflow.start()
            process.join()
            done = life()
        mlflow.kill()
        impatient = replace(launcher, environment={**patient, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"})
        refused = impatient.start("run_study", *SMALL[:-4], "--trials", "9", "--store", root)
    return Outage(root, seconds, done, refused, processes.seen)


def test_a_study_waits_for_its_server_and_goes_on(outage: Outage, record_fault: RecordFault) -> None:
    ends_well(outage.root, [outage.done])
    assert outage.done.shown.count("the MLflow server does not answer") == 1
    (study,) = (run for run in Found(outage.root, STUDY).all_runs if run.data.tags["kind"] == "study")
    assert study.data.tags["server_waits"] == "1"
    record_fault(f"tracking server gone for {outage.seconds} s", PROMISES)


def test_no_secret_and_no_password_of_an_address_is_printed(outage: Outage) -> None:
    assert outage.done.exit_code == 0, outage.done.shown
    assert outage.refused.exit_code == ExitCode.STORE, outage.refused.shown
    assert any(WORKER in command for command in outage.commands)
    written = {path: path.read_bytes() for path in outage.root.rglob("*") if path.is_file()}
    assert any(path.suffix == ".log" for path in written)
    for secret in (PASSWORD, *SECRETS.values()):
        assert secret not in outage.done.shown + outage.refused.shown
        assert not [command for command in outage.commands if secret in command]
        assert not [path for path, content in written.items() if secret.encode() in content]


def test_a_missing_server_ends_the_study_and_it_goes_on_later(
    launcher: Launcher, new_store: NewStore, record_fault: RecordFault
) -> None:
    root = new_store()
    with serving(root) as mlflow:
        address = f"http://127.0.0.1:{mlflow.port}"
        # As a user may set it; without, it is two minutes.
        impatient = {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "TOY_EPOCH": "1"}
        away = replace(launcher, environment=impatient)

        with away.living("run_study", *SMALL, "--store", root) as (process, life):
            until(lambda: bool(life().begun()))
            mlflow.kill()
            process.join()
            gone = life()
        says_what_failed(gone, f"{address} gave up: no answer from the server (Connection refused)", "same command")
        refused = away.start("run_study", *SMALL, "--store", root)
        says_what_failed(refused, f"{address} does not answer")

        mlflow.start()
        ends_well(root, [gone, refused, away.start("run_study", *SMALL, "--store", root)])
    record_fault("tracking server gone for good", PROMISES)
