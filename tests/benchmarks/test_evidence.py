import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from benchmarks.evidence import check_store
from fashion_study.store.store import open_store

TRIAL: dict[str, Any] = {
    "filters_1": 32,
    "filters_2": 64,
    "filters_3": 64,
    "learning_rate": 1e-4,
    "batch_size": 512,
    "epochs": 2,
}


class Contender:
    """Leave runs as a contender does."""

    def __init__(self, root: Path) -> None:
        self._store = open_store(root)
        self._client: MlflowClient = self._store.client()
        self._experiment = self._store.experiment_id(self._client, "hand-made")
        self.uri = self._store.tracking_uri

    def leave(
        self, steps: Sequence[int], files: Sequence[str], status: str | None = "FINISHED", **params: object
    ) -> None:
        run_id = self._client.create_run(self._experiment).info.run_id
        for name, value in (TRIAL | params).items():
            self._client.log_param(run_id, name, value)
        for place, step in enumerate(steps):
            self._client.log_metric(run_id, "val_accuracy", 0.6 + 0.1 * place, step=step)
        for file in files:
            self._client.log_text(run_id, json.dumps({}), file)
        if status:
            self._client.set_terminated(run_id, status)


@pytest.fixture
def contender(tmp_path: Path) -> Contender:
    return Contender(tmp_path)


def test_a_run_with_all_its_evidence_is_complete(contender: Contender) -> None:
    contender.leave([1, 2], ["confusion_matrix.json", "model/MLmodel"])

    evidence = check_store(contender.uri, [TRIAL])

    assert (evidence.trials, evidence.complete, evidence.complaints) == (1, 1, ())
    assert evidence.accuracy == pytest.approx(0.7)


def test_what_a_run_lacks_is_named_and_extra_runs_are_counted(contender: Contender) -> None:
    contender.leave([0, 0], ["model/MLmodel"])
    contender.leave([0, 0], ["confusion_matrix.png"], status=None, learning_rate=0.5)

    evidence = check_store(contender.uri, [TRIAL])

    assert (evidence.trials, evidence.complete) == (2, 0)
    assert set(evidence.complaints) == {
        "the validation accuracy has not one point an epoch (2 runs)",
        "all values of val_accuracy stand at step 0 (2 runs)",
        "no confusion matrix",
        "no model",
        "parameters are not those of any trial",
        "status RUNNING",
        "2 runs for 1 trials",
    }
