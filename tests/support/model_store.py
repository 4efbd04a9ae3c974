"""A real MLflow store with small models in it, as studies leave them, without training a study."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import keras
from mlflow import MlflowClient
from mlflow.entities import Param
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from fashion_study.data.catalog import load_dataset, locate
from fashion_study.data.dataset import Dataset
from fashion_study.data.holdout import load_holdout
from fashion_study.promotion.decision import Decision, PromotionConfig
from fashion_study.promotion.promote import promote
from fashion_study.tracking.registry import CHALLENGER, Registry, Version
from fashion_study.training.evaluation import evaluate
from fashion_study.training.model import build_model, to_float32
from fashion_study.trial import Hyperparameters
from fashion_study.worker.record import record_model
from tests.support.empty_store import empty_store

SMALL = Hyperparameters(
    filters_1=4, filters_2=6, filters_3=8, dense_units=12, learning_rate=0.01, batch_size=64, optimizer="adam"
)


@cache
def digits() -> Dataset:
    return load_dataset(locate("digits"))


@cache
def trained(epochs: int, seed: int = 0) -> keras.Model:
    """Train on the digits: none to chance, one to about half, eight to well above nine in ten."""
    keras.utils.set_random_seed(seed)
    model = build_model(SMALL, (28, 28, 1), 10)
    if epochs:
        train = digits().train
        model.fit(train.images, train.labels, batch_size=SMALL.batch_size, epochs=epochs, verbose=0)
    return to_float32(model, SMALL)


@cache
def confusion(model: keras.Model, holdout: bool) -> list[list[int]]:
    """Return the confusion matrix of the validation images or of the holdout, as a run has it."""
    split = load_holdout(digits().source) if holdout else digits().validation
    counts: list[list[int]] = evaluate(model, split, digits().class_names).confusion.tolist()
    return counts


class ModelStore:
    """A store to which runs, models and versions are added, and what a promotion left there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = empty_store(root)
        self.client: MlflowClient = self.store.client()
        self.registry = Registry(self.client)
        self.experiment_id = self.store.experiment_id(self.client, "digits")

    def study(self, name: str) -> str:
        tags = {"kind": "study", "study": name}
        return str(self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id)

    def trial(self, study_run: str, number: int, model: keras.Model) -> str:
        """Add a complete trial's run, with its model and the confusion matrix of its validation images."""
        study = self.client.get_run(study_run).data.tags["study"]
        tags = {"kind": "trial", "study": study, "trial": str(number), "state": "complete"}
        return self._run(study_run, tags, model, holdout=False)

    def baseline(self, model: keras.Model) -> str:
        """Add a run as the reproduction of the baseline leaves it: confusion matrix and reading of the holdout."""
        parent = self.client.create_run(self.experiment_id, tags={"kind": "baseline reproduction"}).info.run_id
        self.client.log_metric(parent, "holdout_readings", 2)
        return self._run(parent, {"kind": "baseline"}, model, holdout=True)

    def register(self, run_id: str, **changed: str) -> Version:
        """Register the model of a run as the challenger."""
        run = self.client.get_run(run_id)
        of_study = {key: run.data.tags[key] for key in ("study", "trial") if key in run.data.tags}
        tags = {"run": run_id, "dataset": "digits", "data_digest": digits().source.digest, **of_study, **changed}
        version = self.registry.register("digits", run, tags)
        self.registry.move_alias(version.name, CHALLENGER, version.number)
        return version

    def promote(self, **asked: object) -> Decision:
        return promote(PromotionConfig.model_validate(asked), self.store)

    def aliases(self, name: str = "digits-cnn") -> Mapping[str, int]:
        found = self.client.get_registered_model(name).aliases
        return {alias: int(number) for alias, number in found.items()}

    def tags(self, version: Version) -> Mapping[str, str]:
        return dict(self.client.get_model_version(version.name, str(version.number)).tags)

    def decisions(self, run_id: str) -> list[dict[str, object]]:
        """Return every recorded decision of a run, the oldest first."""
        folders = sorted(entry.path for entry in self.client.list_artifacts(run_id, "decisions"))
        return [json.loads(self.text(run_id, f"{folder}/decision.json")) for folder in folders]

    def text(self, run_id: str, name: str) -> str:
        return Path(self.client.download_artifacts(run_id, name)).read_text(encoding="utf-8")

    def readings(self, study_run: str) -> int:
        return int(self.client.get_run(study_run).data.tags.get("holdout_readings", 0))

    def model_file(self, version: Version) -> Path:
        return next(self.root.joinpath("artifacts").rglob(f"{self._model_id(version)}/**/model.keras"))

    def card_file(self, version: Version) -> Path:
        return next(self.root.joinpath("artifacts").rglob(f"{self._model_id(version)}/**/MLmodel"))

    def _model_id(self, version: Version) -> str:
        return self.client.get_run(version.run_id).data.tags["model_uri"].removeprefix("models:/")

    def _run(self, parent: str, tags: dict[str, str], model: keras.Model, *, holdout: bool) -> str:
        run = self.client.create_run(self.experiment_id, tags=tags | {MLFLOW_PARENT_RUN_ID: parent})
        run_id = str(run.info.run_id)
        params = [Param(name, str(value)) for name, value in SMALL.model_dump().items()]
        self.client.log_batch(run_id, params=params)
        self.client.log_dict(run_id, {"counts": confusion(model, holdout)}, "confusion_matrix.json")
        logged = record_model(self.client, run_id, model, SMALL)
        for key, value in {"model_uri": logged.uri, "model_sha256": logged.sha256}.items():
            self.client.set_tag(run_id, key, value)
        self.client.set_terminated(run_id, "FINISHED")
        return run_id
