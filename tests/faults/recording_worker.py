"""The toy worker, leaving what a real one leaves: the artifacts of a complete trial, and a real model.

`FAULTS_MODEL` names the folder of that model, `FAULTS_EVIDENCE` the artifacts. `FAULTS_STEP` is the step of the
worker's at which its coordinator dies; a step is a file or a commit that the worker is about to write. With
`FAULTS_OUTLIVES` the kernel does not end the worker with its coordinator, as it does not on other systems than Linux.
"""

import hashlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from fashion_study.testing.training import work_with
from fashion_study.trial import AttemptLost, EpochReport, TrialResult, TrialSpec, TrialState, WorkerSettings
from fashion_study.worker import process as worker
from tests.executors.toy_worker import ToyTrainer
from tests.faults.journal import JOURNAL, Journal

MODEL = "FAULTS_MODEL"
# Not imported from the doctor: it brings Optuna into every worker.
EVIDENCE = "FAULTS_EVIDENCE"
STEP = "FAULTS_STEP"
OUTLIVES = "FAULTS_OUTLIVES"


class RecordingTrainer(ToyTrainer):
    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings)
        # Here, where a real worker imports TensorFlow.
        from mlflow import MlflowClient

        from tests.faults.commits import on_every_commit

        self._client = MlflowClient(settings.tracking_uri)
        self._journal = Journal(Path(os.environ[JOURNAL]), "worker")
        self._model = Path(os.environ[MODEL])
        self._steps_left = int(os.environ.get(STEP, "0"))
        on_every_commit(before=self._step)

    def train(self, spec: TrialSpec, go_on: Callable[[EpochReport], bool]) -> TrialResult | AttemptLost:
        result = super().train(spec, go_on)
        if isinstance(result, AttemptLost) or result.state is not TrialState.COMPLETE:
            return result
        with self._journal.during("artifact"):
            self._record_evaluation(spec)
        with self._journal.during("model"):
            tags = self._record_model(spec)
        metrics = {"objective": result.objective or 0.0, "parameter_count": 1.0}
        return replace(result, metrics=metrics, tags=tags)

    def _record_evaluation(self, spec: TrialSpec) -> None:
        for name in os.environ[EVIDENCE].split():
            self._step()
            self._client.log_text(spec.run_id, f"{name} of {spec.label}", name)

    def _record_model(self, spec: TrialSpec) -> dict[str, str]:
        from mlflow.entities import LoggedModelOutput

        from fashion_study.tracking.registry import MODEL_FILE

        experiment = self._client.get_run(spec.run_id).info.experiment_id
        logged = self._client.create_logged_model(experiment, name="model", source_run_id=spec.run_id)
        for path in sorted(self._model.rglob("*")):
            if path.is_file():
                self._step()
                folder = path.parent.relative_to(self._model).as_posix()
                self._client.log_model_artifact(logged.model_id, str(path), None if folder == "." else folder)
        self._client.finalize_logged_model(logged.model_id, "READY")
        self._client.log_outputs(spec.run_id, [LoggedModelOutput(logged.model_id, step=0)])
        digest = hashlib.sha256((self._model / MODEL_FILE).read_bytes()).hexdigest()
        return {"model_uri": f"models:/{logged.model_id}", "model_sha256": digest}

    def _step(self) -> None:
        self._journal.note("step")
        self._steps_left -= 1
        if self._steps_left == 0:
            os.kill(psutil.Process(os.getppid()).ppid(), signal.SIGKILL)
            signal.pause()  # The kernel ends the fork server with the coordinator, and this process with that.


if __name__ == "__main__":
    if OUTLIVES in os.environ:
        worker._end_with_the_parent = lambda: None
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    work_with(RecordingTrainer)
