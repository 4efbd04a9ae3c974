"""The predictions of a model in the store for a user's pictures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from fashion_study.data.catalog import KINDS
from fashion_study.data.dataset import DatasetKind
from fashion_study.errors import BadInputError, DamagedModelError, StoreError
from fashion_study.prediction.model_uri import ModelUri
from fashion_study.prediction.pictures import PictureError, fit_picture, read_picture
from fashion_study.store.failures import store_failures
from fashion_study.store.reading import reading
from fashion_study.store.store import Store
from fashion_study.text import printable
from fashion_study.tracking.registry import CHAMPION, ModelRef, Registry, Version
from fashion_study.tracking.search import dataset_of

# Of the classes, the most probable ones are shown.
SHOWN = 3
# Their columns on a terminal: a picture's path, which can be broken, and a share with the space around it.
SHORTEST_PATH = 12
SHARE = 11
BATCH = 1000


@dataclass(frozen=True)
class ClassProbability:
    """A class with the probability that the model gives it."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The three most probable classes of a picture, the best first; none, and the error, where it is unreadable."""

    picture: Path
    classes: tuple[ClassProbability, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Predictions:
    """The predictions of `model`, in the order of the pictures; `model` is None where no picture could be read."""

    model: str | None
    pictures: tuple[Prediction, ...]

    @property
    def errors(self) -> list[str]:
        """Return the error of each picture that could not be read."""
        return [one.error for one in self.pictures if one.error is not None]


def predict(pictures: Sequence[Path], store: Store, model_uri: ModelUri | None = None) -> Predictions:
    """Predict pictures with the champion of a store, or with the model at `model_uri`.

    A picture that cannot be read keeps no other one from being predicted.

    Raises:
        BadInputError: there is no model at `model_uri`.
        StoreError: the store has no champion, or gives up.
        DamagedModelError: the model's file is not the one that was logged, or not one of this project.
    """
    images: dict[Path, NDArray[np.uint8]] = {}
    errors: dict[Path, str] = {}
    model = None
    with store_failures(store, "Predict again when it answers."), reading(store) as opened:
        for path in pictures:
            try:
                picture = read_picture(path)
                # Not before: where no picture can be read, no model is looked for.
                if model is None:
                    registry = Registry(opened.client())
                    model, kind = _champion(registry) if model_uri is None else _at(registry, model_uri)
                images[path] = fit_picture(picture, kind.image_shape)
            except PictureError as error:
                errors[path] = str(error)
        if model is None or not images:
            return Predictions(None, tuple(Prediction(path, error=errors[path]) for path in pictures))
        rows = _probabilities(registry, model, np.stack(list(images.values())), len(kind.class_names))
    classes = {path: _best(row, kind.class_names) for path, row in zip(images, rows, strict=True)}
    found = (Prediction(path, classes.get(path, ()), errors.get(path)) for path in pictures)
    return Predictions(model.title, tuple(found))


def table(predictions: Predictions, width: int) -> Table:
    """Return predictions as a table: each picture that could be read has a row, on a narrow terminal one per class."""
    longest = max((len(each.name) for one in predictions.pictures for each in one.classes), default=0)
    in_a_row = 3 if SHORTEST_PATH + 3 * (longest + SHARE) <= width else 1
    laid = Table(
        title=f"by {predictions.model}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    laid.add_column("picture", overflow="fold")
    for heading in ("best", "second", "third")[:in_a_row]:
        laid.add_column(heading, no_wrap=True)
        laid.add_column("", justify="right", no_wrap=True)
    for one in predictions.pictures:
        if one.classes:
            cells = [cell for each in one.classes for cell in (each.name, f"{100 * each.probability:.1f} %")]
            laid.add_row(Text(printable(str(one.picture))), *cells[: 2 * in_a_row])
            for further in range(2 * in_a_row, len(cells), 2):
                laid.add_row("", *cells[further : further + 2])
    return laid


def as_json(predictions: Predictions) -> list[dict[str, Any]]:
    """Return predictions as JSON values: an object for each picture, with its `classes` or its `error`."""
    return [
        {"picture": str(one.picture), "model": predictions.model, "classes": [asdict(each) for each in one.classes]}
        if one.error is None
        else {"picture": str(one.picture), "error": one.error}
        for one in predictions.pictures
    ]


def _champion(registry: Registry) -> tuple[ModelRef, DatasetKind]:
    for kind in KINDS.values():
        if (version := registry.of_dataset(kind.name).champion) is not None:
            return _with_aliases(version), kind
    raise StoreError(
        f"The store has no champion. Expected a registered model with the alias {CHAMPION!r}. Promote the model of a "
        "study with python -m experiments.promote, or name a model with --model."
    )


def _at(registry: Registry, uri: ModelUri) -> tuple[ModelRef, DatasetKind]:
    if uri.model_id is not None:
        return _logged(registry.client, uri, uri.model_id)
    models = [(registry.of_dataset(kind.name), kind) for kind in KINDS.values()]
    for model, kind in models:
        version = model.version(uri.number) if uri.alias is None else model.by_alias(uri.alias)
        if version is not None and model.name == uri.name:
            return _with_aliases(version), kind
    versions = [version for model, _ in models for version in model.versions]
    there = [
        f"models:/{one.name}{at}" for one in versions for at in (f"/{one.number}", *(f"@{a}" for a in one.aliases))
    ]
    raise BadInputError(
        f"There is no model at {uri}. Expected one of {', '.join(there)}."
        if there
        else f"There is no model at {uri}: the store has no registered model. Run a study first, which registers one."
    )


def _with_aliases(version: Version) -> ModelRef:
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    return replace(version, title=f"{version}{aliases}")


def _logged(client: MlflowClient, uri: ModelUri, model_id: str) -> tuple[ModelRef, DatasetKind]:
    try:
        logged = client.get_logged_model(model_id)
        run = client.get_run(logged.source_run_id or "")
        dataset = dataset_of(client, run)
    except MlflowException as error:
        raise BadInputError(
            f"There is no model at {uri}: {error.message.rstrip('.')}. Expected the id of a logged model, "
            "which the MLflow UI shows on its run."
        ) from error
    sha256 = run.data.tags.get("model_sha256")
    if sha256 is None or dataset not in KINDS:
        raise BadInputError(
            f"The model at {uri} comes from no trial of this project: its run has no tag model_sha256, or its "
            f"experiment {dataset!r} is none of {', '.join(KINDS)}. Expected the model of a trial's run."
        )
    # Not models:/ID, which MLflow looks up in its default store.
    return ModelRef(logged.artifact_location, sha256, run.info.run_id, uri.text), KINDS[dataset]


def _probabilities(registry: Registry, model: ModelRef, images: NDArray[np.uint8], classes: int) -> NDArray[np.float32]:
    """Return the probability of each class, (n, classes)."""
    from fashion_study.libraries import import_without_stderr
    from fashion_study.training.model_file import load_model_file

    import_without_stderr("tensorflow")
    loaded = registry.load(model, load_model_file)
    if loaded.input_shape[1:] != images.shape[1:]:
        raise DamagedModelError(
            f"{model} takes images of {loaded.input_shape[1:]}; its data set has {images.shape[1:]}. "
            "Expected a model that was trained on it."
        )
    if loaded.output_shape[-1] != classes:
        raise DamagedModelError(
            f"{model} tells {loaded.output_shape[-1]} classes apart; its data set has {classes}. "
            "Expected a model that was trained on it."
        )
    return np.asarray(loaded.predict(images.astype(np.float32), batch_size=BATCH, verbose=0))


def _best(probabilities: NDArray[np.float32], names: Sequence[str]) -> tuple[ClassProbability, ...]:
    order = np.argsort(-probabilities, kind="stable")[:SHOWN]
    return tuple(ClassProbability(names[index], float(probabilities[index])) for index in order)
