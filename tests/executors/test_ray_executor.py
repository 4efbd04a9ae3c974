"""The contract of executors on Ray, and what only a cluster can do to a study."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from fashion_study.errors import BadInputError
from fashion_study.executors.cluster import Cluster, Resources, connected
from fashion_study.executors.executor import Executor
from fashion_study.executors.ray import LOST, RayExecutor, WorkerContext
from fashion_study.testing.training import Key, SimulatedOutcome, toy_result
from fashion_study.trial import AttemptLost, EpochReport, ProbeOrder, TrialState
from tests.executors.test_executor_contract import (
    PATIENCE,
    PYTHONPATH,
    SETTINGS,
    TOY,
    MakeProcesses,
    ProcessContract,
    await_the_end,
    await_workers,
    end_of,
    first_report,
    follow,
    spec,
    workers_of,
)
from tests.support.processes import unless_gone

pytestmark = pytest.mark.slow

# Small enough for two on a machine with one core.
SMALL = Resources(0.5, 0, 2**20)


def worker_context(folder: Path, outcomes: Mapping[Key, str], **limits: Any) -> WorkerContext:
    """Return a context with the toy worker and this process's variables for it."""
    by_name = {f"{number}/{attempt}": str(outcome) for (number, attempt), outcome in outcomes.items()}
    toys = {name: value for name, value in os.environ.items() if name.startswith("TOY_")}
    environment = toys | {"PYTHONPATH": PYTHONPATH, "TOY_OUTCOMES": json.dumps(by_name)}
    return WorkerContext(replace(SETTINGS, **limits), folder / "logs", TOY, environment)


def await_slots(executor: Executor, slots: int) -> None:
    """Wait until so many workers are ready."""
    begun = time.monotonic()
    while executor.slots != slots:
        assert time.monotonic() - begun < PATIENCE
        assert executor.wait(0.1) == []


def supervisors() -> list[psutil.Process]:
    """Return the living supervisors below this process."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if unless_gone(child.name, "").startswith("ray::Superv")]


def kill(processes: list[psutil.Process]) -> None:
    """Kill processes and wait for their end."""
    for process in processes:
        process.kill()
    _, alive = psutil.wait_procs(processes, PATIENCE)
    assert alive == []


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected(None, SETTINGS.tracking_uri) as cluster:
        yield cluster


def test_signals_are_the_coordinator_s_to_answer(cluster: Cluster) -> None:
    assert cluster.room(SMALL) >= 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_worker_that_no_node_could_ever_have_is_refused(cluster: Cluster) -> None:
    with pytest.raises(BadInputError, match=r"takes 1024 CPUs.*no node.*--worker-cpus"):
        cluster.check_room(Resources(1024, 0, 2**20), workers=None)


def test_a_cluster_of_its_own_is_out_of_reach_for_other_machines(cluster: Cluster, tmp_path: Path) -> None:
    executor = RayExecutor(cluster, worker_context(tmp_path, {}), SMALL, workers=1)
    await_slots(executor, 1)
    me = psutil.Process()
    below = me.children(recursive=True)
    names = {unless_gone(process.name, "") for process in below}
    connections = [
        each for process in (me, *below) for each in unless_gone(partial(process.net_connections, "tcp"), ())
    ]
    executor.close()

    assert names >= {"gcs_server", "raylet"}
    listening = {ip_address(each.laddr.ip) for each in connections if each.status == psutil.CONN_LISTEN}
    assert listening
    assert {getattr(address, "ipv4_mapped", None) or address for address in listening} == {ip_address("127.0.0.1")}


@pytest.mark.parametrize("own", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}])
def test_a_cluster_of_its_own_lets_nobody_in_without_its_token(own: dict[str, str], cluster: Cluster) -> None:
    assert cluster.room(SMALL) >= 2
    # What every driver does first; `ray.init` would ask again for minutes.
    code = "import sys; from ray._raylet import GcsClient; GcsClient(sys.argv[1]); print('in')"
    command = [sys.executable, "-c", code, ray.get_runtime_context().gcs_address]

    owner = subprocess.run(command, capture_output=True, text=True, check=False)
    stranger = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False)

    assert (owner.returncode, owner.stdout) == (0, "in\n"), owner.stderr
    assert (stranger.returncode, stranger.stdout) == (1, "")
    assert "the token for the cluster" in stranger.stderr


def test_a_probe_that_waits_for_a_worker_can_be_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    executor = RayExecutor(cluster, worker_context(tmp_path, {}), Resources(1024, 0, 2**20), workers=1)
    asked = iter([False, False, True])

    assert executor.probe(ProbeOrder(), lambda: next(asked)) is None

    assert executor.slots == 0
    executor.close()


class TestRayExecutor(ProcessContract):
    @pytest.fixture
    def make(self, cluster: Cluster, tmp_path: Path) -> Iterator[MakeProcesses]:
        made: list[RayExecutor] = []

        def start(workers: int, outcomes: Mapping[Key, str], **limits: Any) -> RayExecutor:
            resources = Resources(min(0.5, 1 / workers), 0, SMALL.memory)
            made.append(RayExecutor(cluster, worker_context(tmp_path, outcomes, **limits), resources, workers))
            await_slots(made[-1], workers)
            return made[-1]

        yield start
        for executor in made:
            executor.close()

    def test_an_attempt_is_lost_with_its_supervisor(self, make: MakeProcesses) -> None:
        executor = make(1, {(0, 1): SimulatedOutcome.STUCK})
        executor.submit(spec(0))
        executor.answer(first_report(executor), prune=False)
        (worker,) = workers_of(os.getpid())

        kill(supervisors())

        assert end_of(executor) == AttemptLost(0, 1, LOST)
        assert executor.slots == 0
        await_slots(executor, 1)
        executor.submit(spec(0, attempt=2))
        assert end_of(executor) == toy_result(spec(0, attempt=2), TrialState.COMPLETE, 2)
        await_the_end(worker)

    def test_an_attempt_not_begun_outlives_its_supervisor(self, make: MakeProcesses) -> None:
        executor = make(2, {})
        kill(supervisors()[:1])

        for number in (0, 1):
            executor.submit(spec(number))

        ends = [event for event in follow(executor, ends=2) if not isinstance(event, EpochReport)]
        assert sorted(ends, key=lambda end: end.number) == [
            toy_result(spec(number), TrialState.COMPLETE, 2) for number in (0, 1)
        ]

    def test_an_attempt_not_begun_waits_for_the_next_worker(self, make: MakeProcesses) -> None:
        executor = make(1, {})
        kill(supervisors())

        executor.submit(spec(0))

        assert end_of(executor) == toy_result(spec(0), TrialState.COMPLETE, 2)

    def test_the_time_between_two_attempts_is_charged_to_none(self, make: MakeProcesses) -> None:
        executor = make(1, {}, trial_timeout=1)
        for number in (0, 1):
            executor.submit(spec(number))
            assert end_of(executor) == toy_result(spec(number), TrialState.COMPLETE, 2)
            time.sleep(1.5)

    def test_secrets_reach_the_worker_but_no_process_list_or_log(
        self, make: MakeProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_PASSWORD", "hunter2")
        executor = make(1, {})
        executor.submit(spec(0))
        end_of(executor)
        (worker,), below = await_workers(1), psutil.Process().children(recursive=True)

        assert worker.environ()["TOY_PASSWORD"] == "hunter2"
        assert not any("hunter2" in word for process in below for word in unless_gone(process.cmdline, ()))
        node: Any = ray._private.worker._global_node
        folder = Path(node.get_logs_dir_path())
        logs = [path for path in folder.rglob("*") if path.is_file()]
        assert logs
        assert not any(b"hunter2" in path.read_bytes() for path in logs)
