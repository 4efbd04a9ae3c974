"""The artifacts and the model that a worker logs to a trial's MLflow run. The run's status is the coordinator's."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import matplotlib as mpl
import matplotlib.style
import mlflow.keras
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils import requirements_utils

from fashion_study.data.dataset import Split
from fashion_study.tracking.registry import MODEL_FILE, ModelRef, file_sha256
from fashion_study.training.evaluation import Evaluation
from fashion_study.training.figures import PLAIN, confusion_matrix_figure, prediction_grid_figure
from fashion_study.trial import Hyperparameters

MODEL_NAME = "model"
MOST_CONFUSED = 10
EXAMPLES = 6
REQUIREMENTS = ("mlflow", "tensorflow", "keras", "numpy", "pandas")


def record_evaluation(client: MlflowClient, run_id: str, evaluation: Evaluation, split: Split, seed: int) -> str:
    """Log the figures and tables of an evaluation on `split` as artifacts of a run, and return their SHA-256 sums.

    The sums are lines as `sha256sum --check` reads them.

    `most_confused.json` names images by their index in `split`: of each pair up to six examples, and under
    `mistakes` all that are predicted wrongly, so that two models can be compared image by image.
    """
    names, confusion = evaluation.class_names, evaluation.confusion
    title = f"accuracy {evaluation.accuracy:.2%} on {len(split.labels):,} images"
    grid = prediction_grid_figure(
        split.images, split.labels, evaluation.predicted, evaluation.probabilities, names, seed
    )
    figures = {"confusion_matrix.png": confusion_matrix_figure(confusion, names, title), "predictions.png": grid}
    shape = {"classes": list(names), "rows": "true", "columns": "predicted"}
    tables = {
        "confusion_matrix.json": {**shape, "counts": confusion.tolist()},
        "classification_report.json": evaluation.report,
        "most_confused.json": {
            "pairs": _most_confused(evaluation, split),
            "mistakes": np.flatnonzero(evaluation.predicted != split.labels).tolist(),
        },
    }
    with TemporaryDirectory() as folder:
        with mpl.style.context(PLAIN):
            for name, figure in figures.items():
                figure.savefig(Path(folder, name))
        for name, table in tables.items():
            Path(folder, name).write_text(json.dumps(table, indent=2), encoding="utf-8")
        client.log_artifacts(run_id, folder)
        files = sorted(Path(folder).iterdir())
        return "\n".join(f"{file_sha256(file)}  {file.name}" for file in files)


def record_model(client: MlflowClient, run_id: str, model: keras.Model, params: Hyperparameters) -> ModelRef:
    """Log an uncompiled model as an MLflow model of a run, ready to load and to serve.

    Written over the client, since `mlflow.keras.log_model` works on the active run of the default store.
    """
    logged = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=MODEL_NAME,
        source_run_id=run_id,
        params={name: str(value) for name, value in params.model_dump().items()},
    )
    model_id = logged.model_id
    metadata = Model(artifact_path=logged.artifact_location, run_id=run_id, model_uuid=model_id, model_id=model_id)
    with TemporaryDirectory() as folder, _without_package_scan():
        mlflow.keras.save_model(
            model,
            f"{folder}/model",
            mlflow_model=metadata,
            signature=_signature(model),
            # Without a list MLflow starts a second Python to find out: 5 s.
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
        )
        sha256 = file_sha256(Path(folder, "model", MODEL_FILE))
        client.log_model_artifacts(model_id, f"{folder}/model")
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    return ModelRef(f"models:/{model_id}", sha256, run_id, f"run {run_id}")


def final_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return the figures of a trial's evaluation as its run shows them; the objective is the accuracy."""
    return {
        "objective": evaluation.accuracy,
        "macro_f1": evaluation.macro_f1,
        "ms_per_image": evaluation.ms_per_image,
        **by_class("recall", evaluation.recall),
    }


def by_class(figure: str, values: dict[str, float]) -> dict[str, float]:
    """Return a figure of each class as a metric: the recall of `Ankle boot` is `recall_ankle_boot`."""
    slugs = (re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") for name in values)
    return {f"{figure}_{slug}": value for slug, value in zip(slugs, values.values(), strict=True)}


def _most_confused(evaluation: Evaluation, split: Split) -> list[dict[str, Any]]:
    """Return the ten most frequent mistakes, the most frequent first, each with the images of which it was surest."""
    counts = evaluation.confusion * (1 - np.eye(len(evaluation.class_names), dtype=int))
    pairs = []
    for cell in np.argsort(-counts, axis=None, kind="stable")[: min(MOST_CONFUSED, np.count_nonzero(counts))]:
        true, predicted = divmod(int(cell), len(evaluation.class_names))
        confused = np.flatnonzero((split.labels == true) & (evaluation.predicted == predicted))
        surest_first = np.argsort(-evaluation.probabilities[confused, predicted], kind="stable")
        pair = {
            "true": evaluation.class_names[true],
            "predicted": evaluation.class_names[predicted],
            "count": len(confused),
            "share": float(len(confused) / evaluation.confusion[true].sum()),
            "examples": confused[surest_first][:EXAMPLES].tolist(),
        }
        pairs.append(pair)
    return pairs


@contextmanager
def _without_package_scan() -> Iterator[None]:
    """Tell MLflow which packages the requirements name, so that it does not look for itself.

    It would read the names of all installed files to find out which module is of which package.
    """
    known = requirements_utils._MODULES_TO_PACKAGES
    requirements_utils._MODULES_TO_PACKAGES = {name: [name] for name in REQUIREMENTS}  # type: ignore[assignment]
    try:
        yield
    finally:
        requirements_utils._MODULES_TO_PACKAGES = known


def _signature(model: keras.Model) -> ModelSignature:
    # float32, not uint8: MLflow casts JSON numbers to this type before the model sees them. As bytes, a pixel
    # of 0.5 would silently become 0 and 256 an error; as float32 both integers and floats arrive unchanged.
    pixels = TensorSpec(np.dtype("float32"), (-1, *model.input_shape[1:]))
    probabilities = TensorSpec(np.dtype("float32"), (-1, *model.output_shape[1:]))
    return ModelSignature(inputs=Schema([pixels]), outputs=Schema([probabilities]))
