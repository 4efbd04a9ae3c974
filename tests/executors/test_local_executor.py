"""The contract of the local executor, and what only this machine's processes, cores and GPUs can do to a study."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from fashion_study.errors import BadInputError, StudyError
from fashion_study.executors import local
from fashion_study.executors.local import LocalExecutor, default_workers, threads_per_worker, visible_gpus
from fashion_study.executors.memory import OomWatch
from fashion_study.testing.training import PROBED, Key, SimulatedOutcome, toy_result
from fashion_study.trial import AttemptLost, EpochReport, FailReason, ProbeOrder, TrialResult, TrialState
from tests.executors.test_executor_contract import (
    MEBIBYTE,
    PATIENCE,
    PYTHONPATH,
    SETTINGS,
    TOY,
    Make,
    MakeProcesses,
    ProcessContract,
    await_the_end,
    await_workers,
    end_of,
    first_report,
    follow,
    hangs_and_fails,
    kill_the_worker,
    spec,
    workers_of,
)
from tests.support.processes import started_process


def fork_server(workers: list[psutil.Process]) -> psutil.Process:
    """Return the process from which these were forked."""
    (server,) = {worker.ppid() for worker in workers}
    return psutil.Process(server)


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
        first.probe(ProbeOrder())
        server = fork_server(await_workers(1))
        first.close()

        make(2, {}).submit(spec(0))

        assert fork_server(await_workers(2)) == server

    def test_settings_of_a_library_need_a_server_of_their_own(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = make(1, {})
        first.probe(ProbeOrder())
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
        first.probe(ProbeOrder())
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
        first.probe(ProbeOrder())
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
            make(1, {}).probe(ProbeOrder())

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
            make(1, {}).probe(ProbeOrder())

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
            make(1, {}).probe(ProbeOrder())

    def test_a_limit_in_which_no_worker_can_start_is_refused(
        self, make: MakeProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_SLOW", "30")

        with pytest.raises(BadInputError, match="--worker-memory allows 1 MiB"):
            make(1, {}, worker_memory=MEBIBYTE).probe(ProbeOrder())

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
            executor.probe(ProbeOrder())

    def test_a_worker_that_is_killed_while_it_starts_is_replaced(self, make: Make) -> None:
        executor = make(1, {})
        kill_the_worker()

        assert executor.probe(ProbeOrder()) == PROBED

    def test_workers_that_are_killed_at_every_start_end_the_study(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_BROKEN", "SIGKILL")
        executor = make(1, {})

        with pytest.raises(StudyError, match=r"worker-0\.log"):
            executor.probe(ProbeOrder())

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
