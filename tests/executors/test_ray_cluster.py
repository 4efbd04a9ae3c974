"""What a cluster of several nodes does to a study: nodes go and come, and no trial is lost or trained twice."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster as NodesHere

from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.errors import BadInputError, StudyError
from fashion_study.executors.cluster import Resources, connected
from fashion_study.executors.executor import Event
from fashion_study.executors.ray import LOST, RayExecutor
from fashion_study.store.trials import TrialStorage
from fashion_study.study.loop import Loop
from fashion_study.study.proposals import Proposals
from fashion_study.testing.memory import MemoryTracker, RecordingObserver, memory_storage
from fashion_study.trial import Precision, TrialState
from tests.executors.test_executor_contract import PATIENCE, PYTHONPATH, workers_of
from tests.executors.test_ray_executor import SMALL, await_slots, supervisors, worker_context
from tests.support.memory_study import smoke_with
from tests.support.processes import started_process, unless_gone

pytestmark = pytest.mark.faults

SERVER = "http://mlflow.invalid:5000"
SQLITE = "sqlite:////here/mlflow.db"
# What a node of the tests has.
A_NODE = Resources(1, 0, 2**20)
SMALL_STORE = 80 * 2**20


@pytest.fixture(scope="module")
def head() -> Iterator[NodesHere]:
    """Start a cluster of one node on this machine."""
    nodes = NodesHere(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": SMALL_STORE})
    yield nodes
    nodes.shutdown()


@pytest.fixture
def nodes(head: NodesHere) -> Iterator[NodesHere]:
    """Add a second node, and leave the first one alone again."""
    add_node(head)
    yield head
    while head.worker_nodes:
        remove_node(head)
    head.wait_for_nodes()


def add_node(nodes: NodesHere) -> None:
    nodes.add_node(num_cpus=1, object_store_memory=SMALL_STORE)


def remove_node(nodes: NodesHere) -> None:
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)


class Patient(RayExecutor):
    """Let the study wait until as many workers are ready as the test expects."""

    least = 2

    def wait(self, timeout: float) -> list[Event]:
        events = super().wait(timeout)
        while self.slots < self.least:
            events += super().wait(timeout)
        return events


def test_a_study_follows_the_cluster_and_ends_every_trial_once(
    nodes: NodesHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_EPOCH", "0.2")
    trials, epochs = 8, 8
    space = smoke_with(epochs=epochs)
    trial_storage, runs, observer = TrialStorage(memory_storage(), "toy"), MemoryTracker(), RecordingObserver()
    sizes: list[int] = []

    with connected(nodes.address, SERVER) as cluster:
        executor = Patient(cluster, worker_context(tmp_path, {}), A_NODE, warn=observer.warn)

        def shrink_and_grow() -> bool:
            """Take a node away in the middle of two attempts, and bring another one when the loss is noticed."""
            running = set(observer.started) - {(number, 1) for number, _, _ in observer.closed}
            reached = {(number, attempt): epoch for number, attempt, epoch in observer.epochs}
            middle = [key for key in running if 2 <= reached.get(key, 0) < epochs - 1]
            if not sizes and executor.slots == len(middle) == 2:
                sizes.append(2)
                executor.least = 0
                remove_node(nodes)
            elif sizes and sizes[-1] != executor.slots:
                sizes.append(executor.slots)
                if sizes == [2, 1]:
                    add_node(nodes)
                    executor.least = 2
            return False

        engine = OptunaEngine(trial_storage, space, "random", "none", 7)
        proposals = Proposals(engine, runs, observer, Precision.FLOAT32, trials)
        Loop(proposals, executor, observer, shrink_and_grow).run()
        executor.close()

    assert sizes == [2, 1, 2]
    assert [record.state for record in trial_storage.records()] == [TrialState.COMPLETE] * trials
    ((key, cause, state),) = observer.lost
    assert (cause, state) == (LOST, TrialState.WAITING)
    ends = Counter((run.number, run.status) for run in runs.runs.values())
    assert ends == Counter({(number, "complete"): 1 for number in range(trials)} | {(key[0], "interrupted"): 1})


@pytest.mark.parametrize("store", [SQLITE, "postgresql://ana:sesame@db/mlflow"])
def test_several_nodes_without_a_shared_store_are_refused(store: str, nodes: NodesHere) -> None:
    with (
        pytest.raises(BadInputError, match=r"2 nodes.*MLFLOW_TRACKING_URI=http") as refusal,
        connected(nodes.address, store),
    ):
        pass
    assert "sesame" not in str(refusal.value)


def test_a_worker_larger_than_the_one_node_is_refused(head: NodesHere) -> None:
    with connected(head.address, SQLITE) as cluster, pytest.raises(BadInputError, match=r"takes 64 CPUs.*no node"):
        cluster.check_room(Resources(64, 0, 2**20), workers=1)


def test_with_a_local_store_a_node_that_joins_is_left_alone(head: NodesHere, tmp_path: Path) -> None:
    with connected(head.address, SQLITE) as cluster:
        executor = RayExecutor(cluster, worker_context(tmp_path, {}), A_NODE, workers=2)
        add_node(head)
        await_slots(executor, 1)
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2

        for _ in range(20):
            assert executor.wait(0.1) == []

        assert executor.slots == cluster.room(A_NODE) == 1
        executor.close()
    remove_node(head)
    head.wait_for_nodes()


def test_a_cluster_of_its_own_that_dies_ends_the_study(tmp_path: Path) -> None:
    with connected(None, SQLITE) as cluster:
        executor = RayExecutor(cluster, worker_context(tmp_path, {}), SMALL, workers=1)
        await_slots(executor, 1)
        # Of this cluster: another one's processes may stand beside.
        (supervisor,) = supervisors()
        psutil.Process(supervisor.ppid()).kill()

        with pytest.raises(StudyError, match="the same command goes on"):
            await_slots(executor, -1)
        executor.close()


def test_no_process_is_left_when_the_coordinator_is_killed(tmp_path: Path) -> None:
    code = f"""
        import sys, time
        from pathlib import Path
        from fashion_study.executors.cluster import connected
        from fashion_study.executors.ray import RayExecutor
        from tests.executors.test_executor_contract import spec, wait_for_report
        from tests.executors.test_ray_executor import SMALL, await_slots, worker_context
        with connected(None, {SQLITE!r}) as cluster:
            executor = RayExecutor(cluster, worker_context(Path(sys.argv[1]), {{(0, 1): "stuck"}}), SMALL, workers=2)
            await_slots(executor, 2)
            executor.submit(spec(0))
            wait_for_report(executor)
            print("busy", flush=True)
            time.sleep({PATIENCE})
    """
    command = [sys.executable, "-c", re.sub(r"^ {8}", "", code, flags=re.MULTILINE), str(tmp_path)]
    # Ray's own agents ask after their dead cluster for a minute of their own accord.
    surroundings = os.environ | {"PYTHONPATH": PYTHONPATH, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    with started_process(command, stdout=subprocess.PIPE, env=surroundings, text=True) as coordinator:
        assert coordinator.stdout is not None
        assert coordinator.stdout.readline() == "busy\n"
        started = psutil.Process(coordinator.pid).children(recursive=True)
        assert len(workers_of(coordinator.pid)) == 2
        coordinator.kill()

    _, alive = psutil.wait_procs(started, PATIENCE)
    names = {unless_gone(process.name, "") for process in alive}
    assert names <= {"", "ray::DashboardAgent", "ray::RuntimeEnvAgent"}
    _, alive = psutil.wait_procs(alive, 2 * PATIENCE)
    assert alive == []
