"""Each peer of the throughput benchmark, as it is started there: it leaves in MLflow what it is compared by."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence import check_store
from benchmarks.peers.task import Task
from benchmarks.throughput import PEERS, TRIALS

pytestmark = pytest.mark.slow

CLASSES = tuple("abcdefghij")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", [launcher for _, launcher in PEERS.values()])
def test_a_peer_leaves_every_trial_in_full(launcher: str, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    trials = (dict(TRIALS[0]) | {"epochs": 1},)
    task = Task(tmp_path / "task", trials, CLASSES, precision="bfloat16", workers=1, threads=1)
    images = draws.integers(0, 256, (60, 28, 28, 1), dtype=np.uint8)
    labels = np.arange(60, dtype=np.int64) % 10
    task.write(images[:40], labels[:40], images[40:], labels[40:])

    command = [sys.executable, "-m", f"benchmarks.peers.{launcher}", str(task.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)

    assert done.returncode == 0, done.stderr[-4000:]
    evidence = check_store(task.tracking_uri, trials)
    assert (evidence.trials, evidence.complete) == (1, 1), evidence.complaints
    models = [zipfile.ZipFile(path).read("config.json") for path in task.folder.rglob("*.keras")]
    assert models
    assert all(b"mixed_bfloat16" in model for model in models)
