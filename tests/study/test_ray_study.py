"""A study whose workers are on a Ray cluster: the command of docs/ray.md, on one machine and the embedded store."""

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from fashion_study.store.store import open_store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the study."""
    folder = tmp_path_factory.mktemp("ray") / "store"
    fixed = ["--space", "smoke", "--dataset", "digits", "--precision", "float32", "--finalists", "0"]
    command = [sys.executable, "-m", "experiments.run_study", "--executor", "ray", "--workers", "2", "--trials", "3"]
    command += ["--pruner", "none"]  # With two workers it depends on their order which trials it ends.
    done = subprocess.run(
        [*command, *fixed, "--store", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "up to 2 workers on Ray" in done.stdout
    assert "raylet" not in done.stdout + done.stderr
    return folder


def test_every_trial_is_in_optuna_and_a_run_in_mlflow(store: Path) -> None:
    opened = open_store(store)
    study = optuna.load_study(study_name="digits-smoke", storage=opened.open_optuna_storage())
    client: MlflowClient = opened.client()
    runs = client.search_runs([study.user_attrs["experiment_id"]])

    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.status, parent.data.tags["executor"], parent.data.tags["workers"]) == ("FINISHED", "ray", "2")
    children = [run for run in runs if run is not parent]
    assert [run.info.status for run in children] == ["FINISHED"] * 3
    assert all(client.list_artifacts(run.info.run_id) for run in children)


def test_what_a_worker_printed_is_kept_beside_the_store(store: Path) -> None:
    logs = store / "logs" / "digits-smoke"
    assert sorted(log.relative_to(logs).as_posix() for log in logs.rglob("*.log")) == [
        f"ray-{number}/worker-0.log" for number in range(len(list(logs.iterdir())))
    ]
