"""Train one attempt at a trial and write down what it reached."""

import traceback
from collections.abc import Callable

import mlflow
from mlflow import MlflowClient

from fashion_study.datasets import load_study_data
from fashion_study.training.evaluation import evaluate, final_metrics
from fashion_study.training.fit import Epoch, Ending, configure, fit
from fashion_study.training.model import build_model, float32_twin
from fashion_study.training.precision import probe
from fashion_study.training.record import record_evaluation, record_model
from fashion_study.trial import (
    EpochReport,
    FailReason,
    ProbeResult,
    TrialResult,
    TrialSpec,
    TrialState,
    WorkerSettings,
)


class Trainer:
    """Hold what every trial of a worker needs: the images, and a client for the runs."""

    def __init__(self, settings: WorkerSettings) -> None:
        configure(settings.threads)
        mlflow.set_tracking_uri(settings.tracking_uri)
        self._client = MlflowClient(settings.tracking_uri)
        self._data = load_study_data(settings.source, settings.limit_train)

    def probe(self) -> ProbeResult:
        """Measure which precision trains faster here."""
        return probe()

    def train(self, spec: TrialSpec, go_on: Callable[[EpochReport], bool]) -> TrialResult:
        """Train, evaluate and record one attempt; `go_on` takes each epoch's report and answers it.

        An error is a result too: it ends the trial as failed, with its traceback, and not the worker.
        """
        epochs: list[Epoch] = []
        try:
            return self._train(spec, epochs, go_on)
        except Exception:
            return TrialResult(
                spec.number,
                spec.attempt,
                TrialState.FAILED,
                epochs_run=len(epochs),
                reason=FailReason.ERROR,
                message=traceback.format_exc(),
            )
