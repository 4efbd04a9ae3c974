"""A study of the digits, run as a command, and the evidence that it leaves, read with the libraries' own clients."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial

from tests.support.commands import call_command
from tests.support.optuna_client import trials_of

ROOT = Path(__file__).parents[2]
STUDY = "digits-smoke"
# Not a measure of anything: how long a study on a busy machine may take before something must be wrong.
PATIENCE = 280


def command(store: Path, *options: str, space: str = "smoke") -> list[str]:
    fixed = ["--space", space, "--dataset", "digits", "--store", str(store), "--precision", "float32"]
    without = [] if "--finalists" in options else ["--finalists", "0"]
    return [sys.executable, "-m", "experiments.run_study", *fixed, *without, *options]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a study left, read with MLflow's and Optuna's own clients.

    `runs` are its trials' attempts, `repeats` those of its finalists.
    """

    client: MlflowClient
    parent: Run
    runs: dict[str, Run]
    repeats: list[Run]
    trials: dict[int, FrozenTrial]

    def run_of(self, number: int) -> Run:
        return self.runs[self.trials[number].user_attrs["run_id"]]

    def artifacts(self, run: Run, folder: str = "") -> set[str]:
        return {artifact.path for artifact in self.client.list_artifacts(run.info.run_id, folder)}

    def table(self, run: Run, name: str) -> Any:
        return json.loads(Path(self.client.download_artifacts(run.info.run_id, name)).read_text())


def read_back(store: Path, study: str = STUDY) -> Evidence:
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert {run.data.tags["mlflow.parentRunId"] for run in runs if run is not parent} <= {parent.info.run_id}
    return Evidence(
        client=client,
        parent=parent,
        runs={run.info.run_id: run for run in runs if run.data.tags["kind"] == "trial"},
        repeats=[run for run in runs if run.data.tags["kind"] == "finalist"],
        trials={trial.number: trial for trial in trials_of(store, study)},
    )


@dataclass(frozen=True, eq=False)
class Start:
    """One start of the command, run to its end, and what the store held then: later starts change the store."""

    store: Path
    exit_code: int
    output: str
    errors: str
    evidence: Evidence
    parent_files: Path


def start(store: Path, copy_to: Path, *options: str) -> Start:
    """Start the command in a process of its own."""
    done = subprocess.run(
        command(store, *options), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return look(store, copy_to, done)


def start_here(store: Path, copy_to: Path, *options: str) -> Start:
    """Start the command in this process, which has imported already what it needs."""
    return look(store, copy_to, call_command(*command(store, *options)[2:]))


def look(store: Path, copy_to: Path, done: subprocess.CompletedProcess[str]) -> Start:
    evidence = read_back(store)
    copy_to.mkdir()
    files = evidence.client.download_artifacts(evidence.parent.info.run_id, "", str(copy_to))
    return Start(store, done.returncode, done.stdout, done.stderr, evidence, Path(files))
