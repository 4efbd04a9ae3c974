"""A new study that is stopped before its precision is known: a clean end, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow import MlflowClient
from mlflow.entities import Run
from ray.cluster_utils import Cluster

from fashion_study.errors import ExitCode
from fashion_study.executors.supervisor import Supervisor
from fashion_study.tracking.store import open_store

ROOT = Path(__file__).parents[1]
# Not a measure of anything: how long a command on a busy machine may take before something must be wrong.
PATIENCE = 200


def words(store: Path, *more: str) -> list[str]:
    fixed = ["--space", "smoke", "--dataset", "digits", "--workers", "1", "--trials", "1", "--finalists", "0"]
    return [sys.executable, "-m", "experiments.run_study", *fixed, "--store", str(store), *more]


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)


def stopped_by(number: signal.Signals, command: list[str], folder: Path) -> tuple[int, str]:
    """Signal a study that has no worker yet; return its exit code, and what it showed."""
    shown = folder / "shown"
    with shown.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=os.environ)
    try:
        deadline = time.monotonic() + PATIENCE
        while "starting " not in shown.read_text():
            assert process.poll() is None, shown.read_text()
            assert time.monotonic() < deadline, shown.read_text()
            time.sleep(0.02)
        process.send_signal(number)
        code = process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    return code, shown.read_text()


def goes_on(store: Path, *more: str) -> None:
    """Let the same command run to its total, with nothing left of the stop."""
    assert _runs(store) == []
    done = run(words(store, *more))
    assert done.returncode == ExitCode.DONE, done.stdout + done.stderr
    assert "1 of 1 trials done, 1 of them now" in done.stdout
    assert sorted(each.info.status for each in _runs(store)) == ["FINISHED", "FINISHED"]


def _runs(store: Path) -> list[Run]:
    client: MlflowClient = open_store(store).client()
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def test_a_signal_ends_it_cleanly_while_the_first_worker_starts(tmp_path: Path) -> None:
    store = tmp_path / "store"
    code, shown = stopped_by(signal.SIGTERM, words(store), tmp_path)

    assert code == ExitCode.TERMINATED, shown
    assert "0 of 1 trials done, 0 of them now" in shown
    assert "Stopped by SIGTERM" in shown
    assert "Go on: " in shown
    assert "Report: " not in shown
    goes_on(store)


@pytest.fixture
def address() -> Iterator[str]:
    """Give the address of a cluster of one node with one CPU, to which this process is connected too."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    ray.init(nodes.address, log_to_driver=False)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.faults
def test_time_and_signals_end_it_cleanly_while_somebody_else_has_the_cluster(address: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    on_ray = ("--executor", "ray", "--address", address)
    # Anything that nodes can import and that begins nothing by itself.
    tenant: Any = ray.remote(Supervisor).options(num_cpus=1).remote()
    ray.get(tenant.__ray_ready__.remote())

    late = run(words(store, *on_ray, "--timeout", "3s"))
    code, shown = stopped_by(signal.SIGINT, words(store, *on_ray), tmp_path)
    ray.kill(tenant)

    assert late.returncode == ExitCode.ANSWER_IS_NO, late.stdout + late.stderr
    assert "The time given with --timeout is over" in late.stdout
    assert code == ExitCode.INTERRUPTED, shown
    assert "Stopped by Ctrl-C" in shown
    goes_on(store, *on_ray)
