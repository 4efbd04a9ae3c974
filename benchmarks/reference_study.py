"""The libraries' own bookkeeping of a study: Optuna's ask and tell and MLflow's client, both on plain SQLite."""

import time
from pathlib import Path

import optuna
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial, TrialState

from benchmarks.toy_study import METRICS, TAGS
from fashion_study.testing.training import toy_accuracy
from fashion_study.trial import Hyperparameters

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "filters_1": IntDistribution(16, 48, step=8),
    "filters_2": IntDistribution(32, 96, step=8),
    "filters_3": IntDistribution(32, 96, step=8),
    "learning_rate": FloatDistribution(3e-5, 1e-2, log=True),
    "batch_size": CategoricalDistribution([64, 128, 256, 512, 1024]),
}
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "epoch_seconds", "images_per_second")


class ReferenceStudy:
    """A study of so many epochs a trial in both stores, as a careful script keeps it, with every library's defaults."""

    def __init__(self, folder: Path, epochs: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(storage=f"sqlite:///{folder / 'optuna.db'}", direction="maximize")
        self._client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        self._experiment = self._client.create_experiment("stock", (folder / "artifacts").as_uri())
        self._inputs = [_input(context) for context in ("training", "validation")]
        self._epochs = epochs

    def run(self, trials: int) -> int:
        """Run so many trials that train nothing; return how many epochs they had."""
        return sum(self._trial() for _ in range(trials))

    def _trial(self) -> int:
        trial = self._study.ask(DISTRIBUTIONS)
        params = Hyperparameters(**trial.params, epochs=self._epochs)
        tags = {"mlflow.source.name": "stock", "trial": str(trial.number), "seed": "0"}
        run_id = self._client.create_run(self._experiment, tags=tags, run_name=f"trial {trial.number}").info.run_id
        self._client.log_batch(run_id, params=[Param(name, str(value)) for name, value in params.model_dump().items()])
        self._client.log_inputs(run_id, self._inputs)
        epoch, is_pruned = self._curve(trial, run_id, params)
        self._client.log_batch(
            run_id,
            metrics=[Metric(name, value, _now(), epoch) for name, value in METRICS.items()],
            tags=[RunTag(name, value) for name, value in TAGS.items()],
        )
        self._client.set_terminated(run_id, "KILLED" if is_pruned else "FINISHED")
        if is_pruned:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, toy_accuracy(params, epoch))
        return epoch

    def _curve(self, trial: Trial, run_id: str, params: Hyperparameters) -> tuple[int, bool]:
        for epoch in range(1, self._epochs + 1):
            value = toy_accuracy(params, epoch)
            trial.report(value, epoch)
            is_pruned = trial.should_prune()
            self._client.log_batch(run_id, metrics=[Metric(name, value, _now(), epoch) for name in CURVES])
            if is_pruned:
                return epoch, True
        return self._epochs, False


def _input(context: str) -> DatasetInput:
    dataset = Dataset(context, "0" * 32, source_type="local", source="{}", profile="{}")
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _now() -> int:
    return int(time.time() * 1000)
