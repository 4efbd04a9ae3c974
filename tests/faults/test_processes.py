"""Processes that die, hang, grow, stop and meet: what a study makes of each, with the stores and the processes real."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
import pytest
from optuna.trial import TrialState

from fashion_study.mlflow_ui.server import choose_port, serve
from fashion_study.store.store import open_store
from tests.faults.commits import die_at_commit
from tests.faults.conftest import Launch, NewStore
from tests.faults.launcher import SLOW_IMPORTS, Launcher, Life
from tests.faults.promises import (
    Found,
    check,
    databases_are_whole,
    every_trial_has_one_current_run,
    no_acknowledged_result_is_lost,
    nothing_runs_without_an_owner,
    outcome,
)
from tests.faults.table import RecordFault
from tests.support.processes import has_ended, workers_running

pytestmark = pytest.mark.faults

STUDY = "digits-smoke"
# Without pruning: no trial may end before it meets its fate.
FIXED = ("--space", "smoke", "--dataset", "digits", "--precision", "float32", "--finalists", "0", "--pruner", "none")
WORKER = "tests.faults.recording_worker"
PATIENCE = 120


def fates(**by_attempt: str) -> dict[str, str]:
    """Name what attempts meet: `t1a1="lost"`."""
    named = {re.sub(r"t(\d+)a(\d+)", r"\1/\2", attempt): fate for attempt, fate in by_attempt.items()}
    return {"TOY_OUTCOMES": json.dumps(named)}


def until(condition: Callable[[], object], process: BaseProcess) -> None:
    """Wait for something that a living process brings about."""
    for _ in range(PATIENCE * 20):
        if condition():
            return
        assert process.is_alive()
        time.sleep(0.05)
    raise AssertionError("it has not come about")


def workers_of(pid: int | None) -> list[psutil.Process]:
    return workers_running(WORKER, pid)


@contextmanager
def stuck(
    launcher: Launcher, root: Path, trials: int, trial: int = 0
) -> Iterator[tuple[BaseProcess, Callable[[], Life]]]:
    """Give a study that is in the middle of an attempt at `trial` that does not come to an end."""
    words = (*FIXED, "--trials", trials, "--workers", 1, "--store", root)
    with launcher.living("run_study", *words) as (process, life):
        until(lambda: f"trial {trial:03d} epoch 1 of" in life().shown, process)
        yield process, life


def finish(launcher: Launcher, root: Path, trials: int) -> Life:
    return launcher.start("run_study", *FIXED, "--trials", trials, "--workers", 1, "--store", root)


def test_a_worker_s_death_costs_an_attempt_and_a_limit_the_trial(
    launch: Launch, new_store: NewStore, record_fault: RecordFault
) -> None:
    root = new_store()
    launcher = launch(**fates(t1a1="lost", t2a1="segfault", t3a1="exit", t4a1="stuck", t5a1="hungry", t6a1="diverged"))
    limits = ("--trial-timeout", "15s", "--worker-memory", "400M")
    words = (*FIXED, *limits, "--trials", 8, "--workers", 2, "--store", root)

    life = launcher.start("run_study", *words)

    found = Found(root, STUDY, workers=2)
    check(found, [life], 8)
    failed = {trial.number: trial.user_attrs["reason"] for trial in found.trials if trial.state is TrialState.FAIL}
    assert failed == {4: "timeout", 5: "oom", 6: "diverged"}
    attempts = {trial.number: trial.user_attrs["attempt"] for trial in found.trials}
    assert attempts == {0: 1, 1: 2, 2: 2, 3: 2, 4: 1, 5: 1, 6: 1, 7: 1}
    for number, cause in ((1, "signal SIGKILL"), (2, "signal SIGSEGV"), (3, "exit code 3")):
        assert found.runs[number, 0, 1].data.tags["cause"] == cause
        assert f"trial {number:03d} stopped from outside ({cause})" in life.shown
    for fault in ("SIGKILL", "segfault", "`os._exit`", "hang (`--trial-timeout`)", "out of memory (`--worker-memory`)"):
        record_fault(f"worker: {fault}", "I1 I2 I3 I5 I6 I7 I8")
    record_fault("the loss of a trial diverges", "I1 I2 I3 I5 I6 I8")


def test_a_worker_is_gone_within_two_seconds_of_its_coordinator(
    launch: Launch, new_store: NewStore, record_fault: RecordFault
) -> None:
    root, launcher = new_store(), launch(**fates(t0a1="stuck", t0a2="native", t0a3="stopped"))
    lives = []
    for _ in range(3):
        with stuck(launcher, root, trials=1) as (process, life):
            (worker,) = workers_of(process.pid)
            process.kill()
            # The promise itself is one about time. It is kept by a zombie: whose parent has died is init's to note.
            deadline = time.monotonic() + 2
            while not has_ended(worker):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.join()
            lives.append(life())
    check(Found(root, STUDY), [*lives, finish(launcher, root, trials=1)], 1)
    record_fault("coordinator killed: its worker ends within 2 s", "I1 I2 I3 I5 I6 I7 I8", 3, {"epoch": 3})


def test_a_worker_resumed_without_a_coordinator_changes_nothing(
    launch: Launch, new_store: NewStore, record_fault: RecordFault
) -> None:
    root = new_store()
    launcher = launch(**fates(t0a1="stopped"), FAULTS_OUTLIVES="1")
    with stuck(launcher, root, trials=2) as (process, life):
        (worker,) = workers_of(process.pid)
        until(lambda: worker.status() == psutil.STATUS_STOPPED, process)
        process.kill()
        process.join()
        # The kernel lets a stopped process go on whose parent has died.
        with suppress(psutil.NoSuchProcess):
            worker.send_signal(signal.SIGCONT)
        _, alive = psutil.wait_procs([worker], timeout=PATIENCE)
        assert alive == []
        lives = [life(), finish(launcher, root, trials=2)]

    found = Found(root, STUDY)
    check(found, lives, 2)
    assert found.runs[0, 0, 1].data.tags["state"] == "interrupted"
    assert found.client.list_artifacts(found.runs[0, 0, 1].info.run_id) == []
    record_fault("worker stopped, its coordinator killed, continued", "I1 I2 I3 I5 I6 I7 I8", phases={"epoch": 1})


STOPS = {
    "SIGHUP twice, as of a closed terminal": ([signal.SIGHUP, signal.SIGHUP], 129),
    "SIGTERM": ([signal.SIGTERM], 143),
    "SIGTERM twice": ([signal.SIGTERM, signal.SIGTERM], 143),
    "Ctrl-C once": ([signal.SIGINT], 130),
    "Ctrl-C twice": ([signal.SIGINT, signal.SIGINT], 130),
}


def test_a_study_that_is_asked_to_stop_goes_on_the_next_time(
    launch: Launch, new_store: NewStore, record_fault: RecordFault
) -> None:
    root, launcher = new_store(), launch(**fates(t0a1="stuck", t0a2="stuck", t0a3="stuck", t1a1="stuck", t1a2="stuck"))
    lives = list[Life]()
    for trial, (signals, code) in zip((0, 0, 0, 1, 1), STOPS.values(), strict=True):
        with stuck(launcher, root, 2, trial) as (process, life):
            (worker,) = workers_of(process.pid)
            for number in signals:
                os.kill(process.pid or 0, number)
                # Two that come before the first is taken note of are one to the kernel.
                until(lambda life=life: "stopping:" in life().shown, process)  # type: ignore[misc]
            process.join()
            lives.append(life())
        assert lives[-1].exit_code == code, lives[-1].shown
        assert "Traceback" not in lives[-1].shown
        assert not worker.is_running()

    check(Found(root, STUDY), [*lives, finish(launcher, root, 2)], 2)
    for name in STOPS:
        record_fault(name, "I1 I2 I3 I5 I6 I7 I8", phases={"epoch": 1})


def test_a_second_coordinator_is_refused_and_changes_nothing(
    launch: Launch, new_store: NewStore, record_fault: RecordFault
) -> None:
    root, launcher = new_store(), launch(**fates(t0a1="stopped"))
    with stuck(launcher, root, trials=1) as (process, life):
        (worker,) = workers_of(process.pid)
        until(lambda: worker.status() == psutil.STATUS_STOPPED, process)
        second = finish(launcher, root, trials=1)
        assert second.exit_code == 3
        assert f"is being run by process {process.pid} " in second.shown
        assert second.begun() == []
        while process.is_alive():  # The worker stops after every epoch.
            with suppress(psutil.NoSuchProcess):
                worker.send_signal(signal.SIGCONT)
            process.join(0.1)
        first = life()
    assert len(first.begun()) == 1
    check(Found(root, STUDY), [second, first], 1)
    record_fault("two coordinators at once", "I1 I2 I3 I5 I6 I8")


def test_two_coordinators_at_once_train_each_trial_once(
    launch: Launch, new_store: NewStore, record_fault: RecordFault
) -> None:
    root, launcher = new_store(), launch()
    words = (*FIXED, "--trials", 2, "--workers", 1, "--store", root)
    with (
        launcher.living("run_study", *words) as (first, life_of_first),
        launcher.living("run_study", *words) as (second, life_of_second),
    ):
        first.join()
        second.join()
        lives = sorted((life_of_first(), life_of_second()), key=lambda life: -(life.exit_code or 0))
    assert [life.exit_code for life in lives] in ([3, 0], [0, 0])
    check(Found(root, STUDY), lives, 2)
    assert sum(len(life.begun()) for life in lives) == 2
    record_fault("two coordinators at once", "I1 I2 I3 I5 I6 I8")


def test_a_study_of_which_every_trial_diverges_says_so(
    launch: Launch, new_store: NewStore, record_fault: RecordFault
) -> None:
    root = new_store()
    launcher = launch(**fates(t0a1="diverged", t1a1="diverged"))
    life = finish(launcher, root, trials=2)

    assert life.exit_code == 1
    assert "No trial is complete" in life.shown
    found = Found(root, STUDY)
    assert [trial.state for trial in found.trials] == [TrialState.FAIL] * 2
    assert found.versions == []
    databases_are_whole(root)
    no_acknowledged_result_is_lost(found, [life])
    nothing_runs_without_an_owner(found)
    every_trial_has_one_current_run(found)
    record_fault("all trials diverge", "I1 I2 I3 I4 I6 I8")


def test_a_clock_that_jumps_costs_nothing(launch: Launch, new_store: NewStore, record_fault: RecordFault) -> None:
    quiet = new_store()
    assert finish(launch(), quiet, trials=4).exit_code == 0
    for hours in ("1", "-1"):
        root = new_store()
        words = (*FIXED, "--timeout", "20m", "--trial-timeout", "10m", "--trials", 4, "--workers", 1, "--store", root)
        life = launch(FAULTS_HOURS=hours).start("run_study", *words)
        found = Found(root, STUDY)
        check(found, [life], 4)
        assert outcome(found) == outcome(Found(quiet, STUDY))
    record_fault("the clock jumps by an hour", "I1 I2 I3 I5 I6", 2, {"epoch": 2})


def open_everything(root: Path, number: int) -> None:
    """Open an empty store in a process that is killed before its nth commit; 0: never."""
    die_at_commit(number)
    store = open_store(root)
    store.open_optuna_storage()
    store.experiment_id(store.client(), "digits")


def opened_by(root: Path, numbers: list[int]) -> list[int | None]:
    """Open a store in as many processes at once; return how they ended."""
    context = get_context("forkserver")
    context.set_forkserver_preload(SLOW_IMPORTS)
    processes = [context.Process(target=open_everything, args=(root, number)) for number in numbers]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_eight_processes_can_open_an_empty_store_at_once(tmp_path: Path, record_fault: RecordFault) -> None:
    assert opened_by(tmp_path / "store", [0] * 8) == [0] * 8
    databases_are_whole(tmp_path / "store")
    record_fault("8 processes open an empty store at once", "I6")


@pytest.mark.timeout(3600)
def test_a_store_whose_making_was_killed_is_made_the_next_time(
    tmp_path: Path, record_fault: RecordFault, is_full: bool
) -> None:
    numbers = range(1, 200, 5) if is_full else (1, 3, 8)
    times = 0
    for number in numbers:
        root = tmp_path / f"store-{number}"
        (code,) = opened_by(root, [number])
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert opened_by(root, [0]) == [0]
        databases_are_whole(root)
        times += 1
    record_fault("SIGKILL while the databases are made", "I6", times, {"opening": times})


def test_a_port_that_is_taken_costs_the_ui_its_number_only(new_store: NewStore, record_fault: RecordFault) -> None:
    store = open_store(new_store())
    with socket.create_server(("127.0.0.1", 0)) as socket_of_another:
        taken = socket_of_another.getsockname()[1]
        with serve(store, choose_port(taken)) as server:
            assert urlsplit(server.address).port != taken
            with urlopen(f"{server.address}/health") as answer:
                assert answer.status == 200
    record_fault("the UI's port is taken", "I6")
