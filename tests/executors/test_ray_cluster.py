"""What a cluster of several nodes does to a study: nodes go and come, and no trial is lost or trained twice."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster as NodesHere

from fashion_study.coordinator import Assignment, Coordinator
from fashion_study.engines.ledger import Ledger
from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.errors import BadInputError
from fashion_study.executors.cluster import Demand, connected
from fashion_study.executors.ray import LOST, RayExecutor
from fashion_study.space_file import load_space
from fashion_study.trial import Precision, TrialState
from tests.executors.test_ray_executor import await_slots, outfit
from tests.twins import MemoryTracker, RecordingObserver, memory_storage

SERVER = "http://mlflow.invalid:5000"
# What one node of the tests has.
ONE_EACH = Demand(1, 0, 2**20)
MEBIBYTE = 2**20


@pytest.fixture
def nodes() -> Iterator[NodesHere]:
    """Start a cluster of two nodes on this machine."""
    started = NodesHere(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * MEBIBYTE})
    add_node(started)
    yield started
    started.shutdown()


def add_node(nodes: NodesHere) -> None:
    nodes.add_node(num_cpus=1, object_store_memory=80 * MEBIBYTE)


def test_a_study_takes_the_cluster_as_it_is_and_every_trial_ends_once(
    nodes: NodesHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_EPOCH", "0.2")
    trials = 8
    ledger, runs, observer = Ledger(memory_storage(), "toy"), MemoryTracker(), RecordingObserver()
    sizes: list[int] = []

    with connected(nodes.address, SERVER) as cluster:
        executor = RayExecutor(cluster, outfit(tmp_path, {}), ONE_EACH, warn=observer.warn)

        def shrink_and_grow() -> bool:
            """Take a node away in the middle of two attempts, and bring another one when the loss is noticed."""
            if len(sizes) == 0 and len(observer.epochs) >= 3 and executor.slots == 2:
                sizes.append(executor.slots)
                nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
            elif len(sizes) == 1 and executor.slots == 1:
                sizes.append(executor.slots)
                add_node(nodes)
            elif len(sizes) == 2 and executor.slots == 2:
                sizes.append(executor.slots)
            return False

        space = load_space("smoke")
        Coordinator(
            Assignment(space, 7, Precision.FLOAT32, trials),
            OptunaEngine(ledger, space, "random", "none", 7),
            ledger,
            executor,
            runs,
            observer,
            shrink_and_grow,
        ).run()
        executor.stop()

    assert sizes == [2, 1, 2]
    assert [record.state for record in ledger.records()] == [TrialState.COMPLETE] * trials
    lost = [key for key, cause, state in observer.lost if (cause, state) == (LOST, TrialState.WAITING)]
    assert len(lost) == len(observer.lost) == 1
    ends = Counter((run.number, run.status) for run in runs.runs.values())
    assert ends == Counter({(number, "complete"): 1 for number in range(trials)} | {(lost[0][0], "interrupted"): 1})


def test_several_nodes_and_a_store_of_this_machine_do_not_go_together(nodes: NodesHere) -> None:
    with (
        pytest.raises(BadInputError, match=r"2 nodes.*MLFLOW_TRACKING_URI=http"),
        connected(nodes.address, "sqlite:////here/mlflow.db"),
    ):
        pass


def test_with_a_store_of_this_machine_a_node_that_joins_later_is_left_alone(nodes: NodesHere, tmp_path: Path) -> None:
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
    with connected(nodes.address, "sqlite:////here/mlflow.db") as cluster:
        executor = RayExecutor(cluster, outfit(tmp_path, {}), ONE_EACH)
        add_node(nodes)
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2

        assert cluster.room(ONE_EACH) == 1
        await_slots(executor, 1)
        executor.stop()
