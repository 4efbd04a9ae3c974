"""The promises of every executor."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from fashion_study.errors import BadInputError, DataError, StudyError
from fashion_study.executors import local
from fashion_study.executors.executor import Event, Executor
from fashion_study.executors.local import LocalExecutor, default_workers, threads_per_worker, visible_gpus
from fashion_study.executors.memory import OomWatch
from fashion_study.testing.memory import MemoryExecutor
from fashion_study.testing.training import PROBED, Key, SimulatedOutcome, toy_report, toy_result
from fashion_study.trial import (
    AttemptLost,
    DataSource,
    EpochReport,
    FailReason,
    Hyperparameters,
    Precision,
    TrialResult,
    TrialSpec,
    TrialState,
    WorkerSettings,
)
from tests.support.processes import has_ended, started_process, workers_running

PYTHONPATH = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
TOY = "tests.executors.toy_worker"
SETTINGS = WorkerSettings(DataSource("digits", None, "d" * 64), None, 1, "sqlite:///nowhere.db")
PATIENCE = 60

Make = Callable[[int, Mapping[Key, SimulatedOutcome]], Executor]
MakeProcesses = Callable[..., Executor]
MEBIBYTE = 2**20


def spec(number: int, attempt: int = 1, epochs: int = 2) -> TrialSpec:
    return TrialSpec(number, attempt, Hyperparameters(epochs=epochs), 0, f"run-{number}-{attempt}", Precision.FLOAT32)


def follow(executor: Executor, ends: int, prune: Callable[[EpochReport], bool] = lambda _: False) -> list[Event]:
    """Answer reports until as many attempts have ended; return everything that was sent."""
    events: list[Event] = []
    begun = time.monotonic()
    while sum(not isinstance(event, EpochReport) for event in events) < ends:
        assert time.monotonic() - begun < PATIENCE, events
        for event in executor.wait(0.25):
            events.append(event)
            if isinstance(event, EpochReport):
                executor.answer(event, prune=prune(event))
    return events


def first_report(executor: Executor) -> EpochReport:
    """Wait for the first report of the one attempt that runs."""
    begun = time.monotonic()
    while not (events := executor.wait(0.25)):
        assert time.monotonic() - begun < PATIENCE
    (report,) = events
    assert isinstance(report, EpochReport)
    return report


class ExecutorContract:
    """The promises of an executor; `make` builds one for a number of workers and the outcomes of attempts."""

    def test_an_attempt_reports_each_epoch_and_then_its_result(self, make: Make) -> None:
        executor = make(1, {})
        asked = spec(3, epochs=3)

        executor.submit(asked)

        reports = [toy_report(asked, epoch) for epoch in (1, 2, 3)]
        assert follow(executor, ends=1) == [*reports, toy_result(asked, TrialState.COMPLETE, 3)]
        assert executor.wait(0.01) == []

    def test_nothing_happens_before_a_report_is_answered(self, make: Make) -> None:
        executor = make(1, {})
        executor.submit(spec(0))
        report = first_report(executor)
        assert [executor.wait(0.05) for _ in range(3)] == [[]] * 3

        executor.answer(report, prune=False)

        assert len(follow(executor, ends=1)) == 2

    def test_a_prune_decision_ends_the_attempt_as_pruned(self, make: Make) -> None:
        executor = make(1, {})
        asked = spec(0, epochs=9)
        executor.submit(asked)

        events = follow(executor, ends=1, prune=lambda report: report.epoch == 2)

        assert events[2:] == [toy_result(asked, TrialState.PRUNED, 2)]

    def test_attempts_run_side_by_side_with_their_own_decisions(self, make: Make) -> None:
        executor = make(2, {})
        assert executor.slots == 2
        for number in (0, 1):
            executor.submit(spec(number, epochs=3))

        events = follow(executor, ends=2, prune=lambda report: report.number == 1)

        ends = {event.number: event.state for event in events if isinstance(event, TrialResult)}
        assert ends == {0: TrialState.COMPLETE, 1: TrialState.PRUNED}

    def test_a_slot_is_free_again_after_any_end(self, make: Make) -> None:
        executor = make(
            1, {(0, 1): SimulatedOutcome.ERROR, (1, 1): SimulatedOutcome.DIVERGED, (2, 1): SimulatedOutcome.LOST}
        )
        ends = []
        for asked in (spec(0), spec(1), spec(2), spec(2, attempt=2)):
            executor.submit(asked)
            ends.append(follow(executor, ends=1)[-1])

        assert ends == [
            toy_result(spec(0), TrialState.FAILED, 1, FailReason.ERROR),
            toy_result(spec(1), TrialState.FAILED, 1, FailReason.DIVERGED),
            AttemptLost(2, 1, "signal SIGKILL"),
            toy_result(spec(2, attempt=2), TrialState.COMPLETE, 2),
        ]
        assert executor.slots == 1

    def test_an_attempt_that_is_lost_leaves_the_others_alone(self, make: Make) -> None:
        executor = make(2, {(0, 1): SimulatedOutcome.LOST})
        for number in (0, 1):
            executor.submit(spec(number, epochs=4))

        ends = [event for event in follow(executor, ends=2) if not isinstance(event, EpochReport)]

        assert AttemptLost(0, 1, "signal SIGKILL") in ends
        assert toy_result(spec(1, epochs=4), TrialState.COMPLETE, 4) in ends

    def test_precision_is_probed(self, make: Make) -> None:
        assert make(1, {}).probe_precision() == PROBED

    def test_a_cancelled_probe_ends_without_a_result(self, make: Make) -> None:
        assert make(1, {}).probe_precision(lambda: True) is None

    def test_it_stops_within_an_attempt_and_may_be_stopped_twice(self, make: Make) -> None:
        executor = make(2, {(0, 1): SimulatedOutcome.STUCK})
        executor.submit(spec(0))
        executor.answer(first_report(executor), prune=False)

        executor.close()
        executor.close()


class TestMemoryExecutor(ExecutorContract):
    @pytest.fixture
    def make(self) -> Make:
        return MemoryExecutor


def end_of(executor: Executor) -> Event:
    """Return how the one attempt that runs ends."""
    return follow(executor, ends=1)[-1]


def workers_of(pid: int) -> list[psutil.Process]:
    """Find the living worker processes of a coordinator."""
    return workers_running(TOY, pid)


def await_workers(count: int, pid: int | None = None) -> list[psutil.Process]:
    """Wait until so many live below a process: they are started by processes of their own."""
    give_up = time.monotonic() + PATIENCE
    while len(workers := workers_of(pid or os.getpid())) != count:
        assert time.monotonic() < give_up, workers
        time.sleep(0.05)
    return workers


def fork_server(workers: list[psutil.Process]) -> psutil.Process:
    """Return the process from which these were forked."""
    (server,) = {worker.ppid() for worker in workers}
    return psutil.Process(server)


def kill_the_worker() -> None:
    """Kill this process's one worker."""
    (worker,) = await_workers(1)
    worker.kill()
    await_the_end(worker)


def await_the_end(worker: psutil.Process) -> None:
    """Wait for a worker's end, and leave its exit status to the executor."""
    begun = time.monotonic()
    while not has_ended(worker):
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.01)


class ProcessContract(ExecutorContract):
    """More promises of an executor with real worker processes; `make` takes limits too.

    The outcomes and the variables `TOY_...` of the environment are those of the toy worker.
    """

    def test_a_worker_that_dies_is_replaced_at_once(self, make: MakeProcesses) -> None:
        executor = make(2, {(0, 1): SimulatedOutcome.LOST})
        before = {process.pid for process in await_workers(2)}
        executor.submit(spec(0))

        follow(executor, ends=1)

        after = {process.pid for process in await_workers(2)}
        assert len(before & after) == 1

    def test_a_worker_that_died_between_two_attempts_costs_none(self, make: MakeProcesses) -> None:
        executor = make(1, {})
        executor.submit(spec(0))
        end_of(executor)
        kill_the_worker()

        executor.submit(spec(1))

        assert end_of(executor) == toy_result(spec(1), TrialState.COMPLETE, 2)

    def test_an_answer_to_a_worker_that_died_meanwhile_is_dropped(self, make: MakeProcesses) -> None:
        executor = make(1, {})
        executor.submit(spec(0))
        report = first_report(executor)
        kill_the_worker()

        executor.answer(report, prune=False)

        assert follow(executor, ends=1) == [AttemptLost(0, 1, "signal SIGKILL")]

    def test_a_worker_that_cannot_begin_its_work_says_why(
        self, make: MakeProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_BROKEN", "1")
        executor = make(1, {})

        with pytest.raises(StudyError, match="no data for digits"):
            executor.probe_precision()

    def test_bad_data_found_by_a_worker_stay_a_matter_of_data(
        self, make: MakeProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_BROKEN", "data")

        with pytest.raises(DataError, match="the images are gone"):
            make(1, {}).probe_precision()

    def test_an_attempt_is_lost_with_the_cause_of_its_worker_s_end(self, make: MakeProcesses) -> None:
        executor = make(1, {(0, 1): "segfault", (1, 1): "store"})
        ends = []
        for number in (0, 1):
            executor.submit(spec(number))
            ends.append(end_of(executor))

        assert ends == [
            AttemptLost(0, 1, "signal SIGSEGV"),
            AttemptLost(1, 1, "the store failed: disk full", by_store=True),
        ]

    def test_a_hanging_attempt_fails_and_its_worker_is_replaced(self, make: MakeProcesses) -> None:
        hangs_and_fails("stopped", make)

    def test_an_attempt_that_takes_too_much_memory_fails(self, make: MakeProcesses) -> None:
        executor = make(1, {(0, 1): "hungry"}, worker_memory=200 * MEBIBYTE)
        executor.submit(spec(0))

        end = end_of(executor)

        assert isinstance(end, TrialResult)
        assert (end.state, end.reason, end.epochs_run) == (TrialState.FAILED, FailReason.OOM, 1)
        assert re.search(r"more than --worker-memory allows \(\d+ MiB were seen\)", end.message)
        executor.submit(spec(1))
        assert end_of(executor) == toy_result(spec(1), TrialState.COMPLETE, 2)

    def test_stopping_ends_every_process(self, make: MakeProcesses) -> None:
        executor = make(2, {(0, 1): SimulatedOutcome.STUCK})
        executor.submit(spec(0))
        executor.answer(first_report(executor), prune=False)
        workers = await_workers(2)

        executor.close()

        _, alive = psutil.wait_procs(workers, PATIENCE)
        assert alive == []


def hangs_and_fails(outcome: str, make: MakeProcesses) -> None:
    """Check that an attempt that hangs in this way fails, and that its worker is replaced."""
    executor = make(1, {(0, 1): outcome}, trial_timeout=1)
    executor.submit(spec(0, epochs=3))
    before = await_workers(1)

    end = end_of(executor)

    assert isinstance(end, TrialResult)
    assert (end.state, end.reason, end.epochs_run) == (TrialState.FAILED, FailReason.TIMEOUT, 1)
    assert "1 s of --trial-timeout" in end.message
    assert end.seconds > 1
    assert not any(worker.is_running() for worker in before)
    executor.submit(spec(1, epochs=1))
    assert end_of(executor) == toy_result(spec(1, epochs=1), TrialState.COMPLETE, 1)


class TestLocalExecutor(ProcessContract):
    @pytest.fixture
    def make(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
        made: list[LocalExecutor] = []

        def start(workers: int, outcomes: Mapping[Key, str], **limits: Any) -> LocalExecutor:
            by_name = {f"{number}/{attempt}": str(outcome) for (number, attempt), outcome in outcomes.items()}
            monkeypatch.setenv("TOY_OUTCOMES", json.dumps(by_name))
            made.append(LocalExecutor(replace(SETTINGS, **limits), workers, tmp_path / "logs"))
            return made[-1]

        monkeypatch.setattr(local, "WORKER_MODULE", TOY)
        monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
        yield start
        for executor in made:
            executor.close()

    def test_an_idle_worker_that_died_is_replaced(self, make: Make) -> None:
        executor = make(1, {})
        executor.submit(spec(0))
        follow(executor, ends=1)
        kill_the_worker()
        while not workers_of(os.getpid()):
            assert executor.wait(0.25) == []

        executor.submit(spec(1))

        assert end_of(executor) == toy_result(spec(1), TrialState.COMPLETE, 2)

    def test_the_next_executor_takes_over_the_fork_server(self, make: Make) -> None:
        first = make(1, {})
        first.probe_precision()
        server = fork_server(await_workers(1))
        first.close()

        make(2, {}).submit(spec(0))

        assert fork_server(await_workers(2)) == server

    def test_settings_of_a_library_need_a_server_of_their_own(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = make(1, {})
        first.probe_precision()
        server = fork_server(await_workers(1))
        first.close()
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")

        make(1, {})

        assert fork_server(await_workers(1)) != server
        assert not server.is_running()

    def test_a_worker_has_the_folder_and_variables_of_its_executor(
        self, make: MakeProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = make(1, {})
        first.probe_precision()
        first.close()
        monkeypatch.chdir(tmp_path)
        executor = make(1, {(0, 1): SimulatedOutcome.STUCK})
        executor.submit(spec(0))

        # Only a worker that has begun its attempt is sure to have both.
        assert first_report(executor).attempt == 1
        (worker,) = await_workers(1)
        assert worker.cwd() == str(tmp_path)

    def test_attempts_are_lost_with_their_fork_server(self, make: Make) -> None:
        executor = make(2, {(0, 1): SimulatedOutcome.STUCK})
        executor.submit(spec(0))
        executor.answer(first_report(executor), prune=False)
        fork_server(await_workers(2)).kill()

        assert end_of(executor) == AttemptLost(0, 1, "signal SIGKILL")

        for number in (0, 1):
            executor.submit(spec(number, attempt=2))
        assert {type(event) for event in follow(executor, ends=2)} == {EpochReport, TrialResult}

    def test_a_fork_server_that_hangs_is_replaced(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(local, "START_SECONDS", 2.0)
        first = make(1, {})
        first.probe_precision()
        server = fork_server(await_workers(1))
        first.close()
        server.suspend()
        executor = make(1, {})
        executor.submit(spec(0))

        assert end_of(executor) == toy_result(spec(0), TrialState.COMPLETE, 2)
        assert not server.is_running()

    def test_a_worker_that_cannot_start_ends_the_study(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "WORKER_MODULE", "tests.executors.no_such_worker")
        executor = make(1, {})
        executor.submit(spec(0))

        log = tmp_path / "logs" / "worker-0.log"
        with pytest.raises(StudyError, match=re.escape(str(log))):
            follow(executor, ends=1)
        assert "no_such_worker" in log.read_text()

    def test_probing_a_worker_that_cannot_start_ends_the_study_too(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "WORKER_MODULE", "tests.executors.no_such_worker")

        with pytest.raises(StudyError, match=r"worker-0\.log"):
            make(1, {}).probe_precision()

    def test_an_attempt_not_begun_is_not_lost_with_its_worker(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_SLOW", "0.5")
        executor = make(1, {})
        executor.submit(spec(0))
        kill_the_worker()

        assert end_of(executor) == toy_result(spec(0), TrialState.COMPLETE, 2)

    @pytest.mark.parametrize(
        ("outcome", "cause"),
        [
            ("abort", "signal SIGABRT"),
            ("exit", "exit code 3"),
            ("exit 0", "exit code 0"),
        ],
    )
    def test_an_attempt_is_lost_however_its_worker_ends(self, outcome: str, cause: str, make: MakeProcesses) -> None:
        executor = make(1, {(0, 1): outcome})
        executor.submit(spec(0))

        assert end_of(executor) == AttemptLost(0, 1, cause)

        executor.submit(spec(0, attempt=2))
        assert end_of(executor) == toy_result(spec(0, attempt=2), TrialState.COMPLETE, 2)

    @pytest.mark.parametrize("outcome", ["stuck", "native"])
    def test_an_attempt_that_hangs_otherwise_fails_as_well(self, outcome: str, make: MakeProcesses) -> None:
        hangs_and_fails(outcome, make)

    def test_the_clock_of_an_attempt_starts_when_it_is_begun(
        self, make: MakeProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_SLOW", "2")
        executor = make(1, {}, trial_timeout=1.5)
        executor.submit(spec(0))

        end = end_of(executor)

        assert end == toy_result(spec(0), TrialState.COMPLETE, 2)
        assert isinstance(end, TrialResult)
        assert 0 < end.seconds < 1.5

    def test_an_attempt_is_not_charged_for_a_stopped_coordinator(
        self, make: MakeProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "LONGEST_TICK", 0.1)
        executor = make(1, {}, trial_timeout=1)
        executor.submit(spec(0))
        report = first_report(executor)
        time.sleep(1.5)

        executor.answer(report, prune=False)

        assert end_of(executor) == toy_result(spec(0), TrialState.COMPLETE, 2)

    def test_workers_that_hang_while_they_start_end_the_study(
        self, make: MakeProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "START_SECONDS", 0.5)
        monkeypatch.setattr(local, "FAILED_STARTS", 1)
        monkeypatch.setenv("TOY_BROKEN", "hang")

        with pytest.raises(StudyError, match="not ready after"):
            make(1, {}).probe_precision()

    def test_memory_left_behind_is_not_charged_to_the_next_attempt(self, make: MakeProcesses) -> None:
        executor = make(1, {(0, 1): "keeping"}, worker_memory=450 * MEBIBYTE)
        alive = [await_workers(1)]
        for number in (0, 1, 2):
            executor.submit(spec(number, epochs=1))
            assert end_of(executor) == toy_result(spec(number, epochs=1), TrialState.COMPLETE, 1)
            alive.append(await_workers(1))

        first, second, third, last = alive
        assert first != second
        assert second == third == last

    def test_workers_that_die_at_every_probe_end_the_study(
        self, make: MakeProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_PROBE", "segfault")

        with pytest.raises(StudyError, match=r"which precision.*worker-0\.log"):
            make(1, {}).probe_precision()

    def test_a_limit_in_which_no_worker_can_start_is_refused(
        self, make: MakeProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_SLOW", "30")

        with pytest.raises(BadInputError, match="--worker-memory allows 1 MiB"):
            make(1, {}, worker_memory=MEBIBYTE).probe_precision()

    def test_a_kill_by_the_kernel_for_memory_is_told_from_any_other(
        self, make: MakeProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kills = [0]
        monkeypatch.setattr(local, "OomWatch", lambda: OomWatch(lambda: kills[0]))
        executor = make(1, {(0, 1): "lost", (1, 1): "lost"})
        executor.submit(spec(0))
        executor.answer(first_report(executor), prune=False)
        kills[0] = 1

        end = end_of(executor)
        executor.submit(spec(1))

        assert isinstance(end, TrialResult)
        assert (end.state, end.reason) == (TrialState.FAILED, FailReason.OOM)
        assert "kernel" in end.message
        assert end_of(executor) == AttemptLost(1, 1, "signal SIGKILL")

    def test_workers_are_renewed_between_attempts_one_by_one(
        self, make: MakeProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "ATTEMPTS_PER_FORK", 2)
        executor = make(2, {})
        first = {worker.pid for worker in await_workers(2)}

        alive = []
        for number in range(0, 6, 2):
            executor.submit(spec(number))
            executor.submit(spec(number + 1))
            ends = [event for event in follow(executor, ends=2) if not isinstance(event, EpochReport)]
            assert {type(end) for end in ends} == {TrialResult}
            alive.append(len(first & {worker.pid for worker in workers_of(os.getpid())}))

        assert alive == [1, 0, 0]

    def test_a_worker_that_died_before_a_probe_is_replaced(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOY_BROKEN", "1")
        monkeypatch.setenv("TOY_SLOW", "1")
        executor = make(1, {})
        (worker,) = await_workers(1)
        await_the_end(worker)

        with pytest.raises(StudyError, match="no data for digits"):
            executor.probe_precision()

    def test_a_worker_that_is_killed_while_it_starts_is_replaced(self, make: Make) -> None:
        executor = make(1, {})
        kill_the_worker()

        assert executor.probe_precision() == PROBED

    def test_workers_that_are_killed_at_every_start_end_the_study(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_BROKEN", "SIGKILL")
        executor = make(1, {})

        with pytest.raises(StudyError, match=r"worker-0\.log"):
            executor.probe_precision()

    def test_stopping_returns_when_every_process_has_ended(self, make: Make) -> None:
        executor = make(3, {(0, 1): SimulatedOutcome.STUCK})
        executor.submit(spec(0))
        executor.answer(first_report(executor), prune=False)
        await_workers(3)

        executor.close()

        assert workers_of(os.getpid()) == []

    def test_ctrl_c_is_the_coordinator_s_to_answer(self, make: Make) -> None:
        make(1, {})
        (worker,) = await_workers(1)
        assert os.getpgid(worker.pid) != os.getpgid(0)

    @pytest.mark.parametrize("outcome", ["stuck", "native", "stopped"])
    def test_workers_end_when_their_coordinator_is_killed(self, outcome: str, tmp_path: Path) -> None:
        workers = orphaned(tmp_path, {"TOY_OUTCOMES": json.dumps({"0/1": outcome})}, "wait_for_report(executor)")

        _, alive = psutil.wait_procs(workers, PATIENCE)

        assert alive == []

    def test_workers_that_still_start_end_with_their_coordinator_too(self, tmp_path: Path) -> None:
        workers = orphaned(tmp_path, {"TOY_BROKEN": "hang"}, "time.sleep(1)")

        _, alive = psutil.wait_procs(workers, PATIENCE)

        assert alive == []


def wait_for_report(executor: Executor) -> None:
    """Let the one running attempt reach its outcome."""
    executor.answer(first_report(executor), prune=False)
    time.sleep(0.5)


def orphaned(folder: Path, environment: dict[str, str], until: str) -> list[psutil.Process]:
    """Kill a coordinator with SIGKILL once it has done what `until` says; return its two workers."""
    code = f"""
        import sys, time
        from pathlib import Path
        from fashion_study.executors import local
        from tests.executors.test_executor_contract import SETTINGS, spec, wait_for_report
        local.WORKER_MODULE = {TOY!r}
        executor = local.LocalExecutor(SETTINGS, 2, Path(sys.argv[1]))
        executor.submit(spec(0))
        {until}
        print("busy", flush=True)
        time.sleep({PATIENCE})
    """
    command = [sys.executable, "-c", re.sub(r"^ {8}", "", code, flags=re.MULTILINE), str(folder)]
    surroundings = os.environ | {"PYTHONPATH": PYTHONPATH} | environment
    with started_process(command, stdout=subprocess.PIPE, env=surroundings, text=True) as coordinator:
        assert coordinator.stdout is not None
        assert coordinator.stdout.readline() == "busy\n"
        workers = await_workers(2, coordinator.pid)
        os.kill(coordinator.pid, signal.SIGKILL)
    return workers


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a machine's list of its GPUs before this machine's: three, the last one shared out."""
    listed = tmp_path / "nvidia-smi"
    listed.write_text(
        "#!/bin/sh\ncat <<END\n"
        "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5fa0)\n"
        "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-77b1)\n"
        "GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-91c2)\n"
        "  MIG 1g.5gb     Device  0: (UUID: MIG-c6d4)\n"
        "END\n"
    )
    listed.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("named", "counted"),
    [
        (None, ["0", "1", "2"]),
        ("0,2", ["0", "2"]),
        ("0, 1", ["0", "1"]),
        ("GPU-77", ["GPU-77"]),
        ("MIG-c6d4", ["MIG-c6d4"]),
        ("1,7,0", ["1"]),
        ("0,1,2,3", ["0", "1", "2"]),
        ("3", []),
        ("-1", []),
        ("", []),
    ],
)
def test_workers_default_to_one_per_gpu_that_is_there(
    named: str | None, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == counted
    assert not counted or default_workers() == len(counted)


@pytest.mark.parametrize("named", ["", "-1", "0", "0,1,2,3", "GPU-5fa0"])
def test_without_a_gpu_workers_default_to_the_usable_cores(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == []
    assert 1 <= default_workers() <= len(os.sched_getaffinity(0))


def test_workers_share_the_cores_and_each_has_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cpu_count", lambda: 8)
    assert [threads_per_worker(workers) for workers in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
