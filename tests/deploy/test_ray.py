"""A study on Ray over the servers of a team: every trial once in both stores, whatever node is lost."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from benchmarks.servers import ROOT, Postgres
from fashion_study.errors import ExitCode
from tests.deploy.conftest import PATIENCE, Command
from tests.faults.table import RecordFault

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

FIXED = ("--executor", "ray", "--dataset", "digits", "--precision", "float32", "--finalists", "0", "--workers", "2")
TRIALS = 4
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """Start a cluster of two nodes on this machine."""
    nodes = Cluster(initialize_head=True, head_node_args=NODE)
    nodes.add_node(**NODE)
    yield nodes
    nodes.shutdown()


def test_a_node_that_is_lost_in_the_middle_costs_no_trial(
    nodes: Cluster, run: Command, on_servers: dict[str, str], postgres: Postgres, tmp_path: Path,
    record_fault: RecordFault,
) -> None:  # fmt: skip
    words = ("--space", _longer(tmp_path), "--trials", str(TRIALS), "--study", "lost-node", "--address", nodes.address)
    command = [sys.executable, "-m", "experiments.run_study", *FIXED, "--pruner", "none", *words]
    shown = tmp_path / "shown"
    with shown.open("wb") as output:
        study = subprocess.Popen(command, cwd=tmp_path, env=on_servers, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _trains_on_both(shown.read_text()):
            assert study.poll() is None, shown.read_text()
            assert time.monotonic() < deadline, shown.read_text()
            time.sleep(0.05)
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        code = study.wait(PATIENCE)
    finally:
        study.kill()
        study.wait()

    assert code == ExitCode.DONE, shown.read_text()
    assert shown.read_text().count("stopped from outside (its supervisor or the node was lost)") == 1
    _is_whole("lost-node", postgres)
    healthy = run("doctor", cwd=tmp_path)
    assert (healthy.returncode, "Nothing is wrong" in healthy.stdout) == (0, True), healthy.stdout + healthy.stderr
    record_fault("a Ray node lost under a study on servers", "I2 I3 I5 I6")


def _longer(folder: Path) -> str:
    """Write a space whose trials last long enough to lose one in the middle."""
    text = (ROOT / "search_spaces" / "smoke.yaml").read_text()
    text = text.replace("  epochs: 2\n", "  epochs: 30\n")
    text = text.replace(
        "    low: 1\n    high: 3\n    grid: [1, 3]\n", "    low: 30\n    high: 40\n    grid: [30, 40]\n"
    )
    path = folder / "longer.yaml"
    path.write_text(text)
    return str(path)


def _trains_on_both(shown: str) -> bool:
    """Say whether two trials are in their middle."""
    ended = set(re.findall(r"^trial (\d+) .*; \d+ of \d+ done", shown, flags=re.MULTILINE))
    return len(set(re.findall(r"^trial (\d+) epoch 3 of", shown, flags=re.MULTILINE)) - ended) == 2


def _is_whole(study: str, postgres: Postgres) -> None:
    """See every trial once in the trial storage, and its one run that counts in MLflow."""
    trials = postgres.query(
        "SELECT number, state::text, (SELECT value_json FROM trial_user_attributes AS attribute "
        "WHERE attribute.trial_id = trials.trial_id AND key = 'run_id') FROM trials JOIN studies USING (study_id) "
        f"WHERE study_name = '{study}' ORDER BY number"
    )
    assert [(number, state) for number, state, _ in trials] == [(number, "COMPLETE") for number in range(TRIALS)]
    ((parent,),) = postgres.query(
        "SELECT value_json FROM study_user_attributes JOIN studies USING (study_id) "
        f"WHERE study_name = '{study}' AND key = 'run_id'"
    )
    current = postgres.query(
        "SELECT run_uuid, status FROM runs JOIN tags AS parent USING (run_uuid) WHERE lifecycle_stage = 'active' "
        f"AND parent.key = 'mlflow.parentRunId' AND parent.value = '{json.loads(str(parent))}' AND NOT EXISTS "
        "(SELECT FROM tags WHERE tags.run_uuid = runs.run_uuid AND tags.key = 'superseded_by')",
        "mlflow",
        "mlflow",
    )
    assert sorted(current) == sorted((json.loads(str(run_id)), "FINISHED") for *_, run_id in trials)
