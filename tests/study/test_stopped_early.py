"""Studies that are stopped before their first attempt: a clean end, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow import MlflowClient
from mlflow.entities import Run
from ray.cluster_utils import Cluster

from fashion_study import StudyConfig, run_study
from fashion_study.errors import ExitCode, StoreError
from fashion_study.executors.ray import Supervisor
from fashion_study.store.store import open_store
from fashion_study.study.progress import Observer
from tests.support.commands import call_command
from tests.support.finished import copy_store

ROOT = Path(__file__).parents[2]
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


def goes_on(store: Path, resume: Callable[[], "subprocess.CompletedProcess[str]"]) -> None:
    """Let the same command run to its total, with nothing left of the stop."""
    assert _runs(store) == []
    done = resume()
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
    goes_on(store, lambda: call_command(*words(store)[2:]))


class StoppingAtTheStart(Observer):
    """Send Ctrl-C when the workers are being started."""

    def note(self, text: str) -> None:
        if text.startswith("starting "):
            signal.raise_signal(signal.SIGINT)


def goes_on_from(finished_study: Path, tmp_path: Path, **changed: int) -> StudyConfig:
    """Ask for more of a copy of a study that has ended."""
    asked = {"space": "smoke", "dataset": "digits", "precision": "float32", "trials": 4, "workers": 1}
    store = copy_store(finished_study, tmp_path / "store")
    return StudyConfig.model_validate({**asked, "finalists": 0, "store": store, **changed})


def test_a_stop_before_the_finalists_leaves_them_to_resume(finished_study: Path, tmp_path: Path) -> None:
    with_finalists = goes_on_from(finished_study, tmp_path, finalists=1, repeats=2)

    stopped = run_study(with_finalists, StoppingAtTheStart())
    gone_on = run_study(with_finalists)

    assert (stopped.stopped_by, stopped.repeats_left, stopped.finalists) == (signal.SIGINT, 2, ())
    assert (gone_on.stopped_by, gone_on.repeats_left) == (None, 0)
    assert [len(finalist.run_ids) for finalist in gone_on.finalists] == [2]


def test_a_study_whose_run_is_gone_is_refused_with_advice(finished_study: Path, tmp_path: Path) -> None:
    more = goes_on_from(finished_study, tmp_path, trials=5)
    (run_id,) = (run.info.run_id for run in _runs(more.store) if run.data.tags["kind"] == "study")
    open_store(more.store).client()._tracking_client.store._hard_delete_run(run_id)
    before = len(_runs(more.store))

    with pytest.raises(StoreError, match=r"The run \w+ of study .* is not at .*MLFLOW_TRACKING_URI.*--study"):
        run_study(more)

    assert len(_runs(more.store)) == before


@pytest.fixture
def address() -> Iterator[str]:
    """Give the address of a cluster of one node with one CPU, to which this process is connected too."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    ray.init(nodes.address, log_to_driver=False)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.faults
def test_a_stop_is_clean_while_others_have_the_cluster(address: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    on_ray = ("--executor", "ray", "--address", address)
    # Anything that nodes can import and that begins nothing by itself.
    tenant: Any = ray.remote(Supervisor).options(num_cpus=1).remote()
    ray.get(tenant.__ray_ready__.remote())

    late = run(words(store, *on_ray, "--timeout", "3s"))
    code, shown = stopped_by(signal.SIGINT, words(store, *on_ray), tmp_path)
    ray.kill(tenant)

    assert late.returncode == ExitCode.ANSWER_IS_NO, late.stdout + late.stderr
    assert "The time of --budget or --timeout is over" in late.stdout
    assert code == ExitCode.INTERRUPTED, shown
    assert "Stopped by Ctrl-C" in shown
    goes_on(store, lambda: run(words(store, *on_ray)))
