"""What a study has left in its trial storage, its runs and the registry, read without a lock and a write."""

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from pydantic import BaseModel, Field, TypeAdapter, model_validator

from fashion_study.data.catalog import load_dataset, locate
from fashion_study.errors import BadInputError, DataError, StoreError
from fashion_study.paths import check_temporary_folder
from fashion_study.report.facts import ConfusedPair, Finals, ModelFacts, Reference, Size, StudyFacts
from fashion_study.space.file import load_space
from fashion_study.store.store import Store
from fashion_study.store.trials import TrialStorage
from fashion_study.study.figures import importances
from fashion_study.study.leaderboard import rank
from fashion_study.text import printable
from fashion_study.tracking.registry import Registry
from fashion_study.tracking.search import find_run, search_runs
from fashion_study.trial import BASELINE_NUMBER

# The runs whose confusion matrix is one of validation images; a registered baseline's is one of the holdout.
ON_VALIDATION_IMAGES = ("trial", "finalist")
STUDY_COMMAND = ["python", "-m", "experiments.run_study"]
# More than there are images of anything here, and few enough to be added up.
Count = Annotated[int, Field(ge=0, le=10**9)]
Text = Annotated[str, Field(max_length=200)]


def collect(trial_storage: TrialStorage, store: Store, data_dir: Path | None = None) -> StudyFacts:
    """Read everything that a report says of the study in `trial_storage`, which has a run in `store`.

    `data_dir` is the folder of the data set's files, for the examples; nothing is downloaded.

    Raises:
        StoreError: the store cannot be read, or what the trials name is missing from it or is not what a study writes.
    """
    with _reading(trial_storage.name), TemporaryDirectory() as folder:
        client = store.client()
        run = client.get_run(trial_storage.attrs["run_id"])
        records = rank(trial_storage.records())
        finals = _finals(client, run.info.run_id)
        complete = {record.number: record.run_id for record in records if record.objective is not None}
        ranked = [None if finals is None else finals.version_run, *complete.values()]
        best = next((model for run_id in ranked if (model := _model(client, run_id)) is not None), None)
        baseline = _model(client, complete.get(BASELINE_NUMBER))
        pixels, pixels_missing = _pixels(best, trial_storage, run, data_dir)
        return StudyFacts(
            name=trial_storage.name,
            run_id=run.info.run_id,
            run_status=run.info.status,
            began=_moment(run.info.start_time),
            ended=None if run.info.end_time is None else _moment(run.info.end_time),
            written=datetime.now(UTC),
            space=load_space(client.download_artifacts(run.info.run_id, "space.yaml", folder)),
            records=records,
            trials=int(run.data.tags["trials"]),
            settings={**run.data.tags, "command": _read_command(run.data.tags)},
            asked=run.data.params,
            image_counts=_image_counts(run),
            best=best,
            baseline=baseline,
            finals=finals,
            sizes=_sizes(client, run, {run_id: number for number, run_id in complete.items()}),
            reference=_reference(client, run.data.params["dataset"], best, baseline),
            importances=importances(trial_storage),
            pixels=pixels,
            pixels_missing=pixels_missing,
        )


@contextmanager
def _reading(study: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, OSError) as error:
        check_temporary_folder()
        reason = printable(next(iter(str(error).splitlines()), repr(error)).rstrip("."))
        raise StoreError(
            f"The runs of study {study!r} cannot be read: {reason}. Expected every run and artifact that its trials "
            "name. Check MLFLOW_TRACKING_URI and --store; python -m experiments.doctor looks for damage."
        ) from error
    except (BadInputError, LookupError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split()).rstrip("."))
        raise StoreError(
            f"What the runs of study {study!r} say cannot be understood: {reason}. Expected tags, parameters and "
            "artifacts as the study wrote them: something was altered since. Restore it, or leave the study as it is."
        ) from error


def _artifact(client: MlflowClient, run_id: str, name: str) -> Any:
    """Read a JSON artifact, without numbers that are none; None where the run has no artifact of that name."""
    if all(artifact.path != name for artifact in client.list_artifacts(run_id)):
        return None
    with TemporaryDirectory() as folder:
        text = Path(client.download_artifacts(run_id, name, folder)).read_text(encoding="utf-8")
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _finals(client: MlflowClient, run_id: str) -> Finals | None:
    """Read the finalists of a study from its run, None where there are none."""
    found = _artifact(client, run_id, "finalists.json")
    finals = None if found is None else TypeAdapter(Finals).validate_python(found)
    if finals is None or not finals.finalists:
        return None
    if any(len(finalist.objectives) != len(finalist.run_ids) for finalist in finals.finalists):
        raise ValueError("expected an objective for each repeat of a finalist")
    return finals


def _model(client: MlflowClient, run_id: str | None) -> ModelFacts | None:
    """Read how the model of a run does on the validation images; None where that was not logged, or the run is gone."""
    run = find_run(client, run_id) if run_id else None
    if run_id is None or run is None:
        return None
    table = _artifact(client, run_id, "confusion_matrix.json")
    if table is None or run.data.tags.get("kind") not in ON_VALIDATION_IMAGES:
        return None
    confusion = Confusion.model_validate(table)
    confused = Confused.model_validate(_artifact(client, run_id, "most_confused.json") or {})
    repeat = run.data.tags.get("repeat")
    return ModelFacts(
        run_id=run_id,
        trial=int(run.data.tags["trial"]),
        repeat=None if repeat is None else int(repeat),
        metrics=run.data.metrics,
        classes=confusion.classes,
        confusion=np.asarray(confusion.counts, dtype=np.int64),
        mistakes=confused.mistakes,
        pairs=confused.pairs,
    )


def _sizes(client: MlflowClient, study: Run, numbers: Mapping[str | None, int]) -> dict[int, Size]:
    """Read the sizes of models from their trials' runs, all in one search; what a run does not say is left out."""
    found = {}
    for run in search_runs(client, [study.info.experiment_id], f"tags.{MLFLOW_PARENT_RUN_ID} = '{study.info.run_id}'"):
        figures = [run.data.metrics.get(name, math.nan) for name in ("parameter_count", "ms_per_image")]
        if run.info.run_id in numbers and all(0 < value < math.inf for value in figures):
            found[numbers[run.info.run_id]] = Size(*figures)
    return found


def _reference(
    client: MlflowClient, dataset: str, best: ModelFacts | None, baseline: ModelFacts | None
) -> Reference | None:
    """Choose what the best model is compared with: the champion, else the study's baseline trial."""
    if best is None:
        return None
    champion = Registry(client).of_dataset(dataset).champion
    if champion is None:
        reason = "no model of this data set is the champion yet"
    elif champion.run_id == best.run_id:
        reason = f"the champion, {champion}, is this very model"
    elif find_run(client, champion.run_id) is None:
        reason = f"the run of the champion, {champion}, was deleted in MLflow, and its evidence with it"
    elif (model := _model(client, champion.run_id)) is None or not _same_images(model, best):
        reason = f"the champion, {champion}, was not evaluated on these validation images"
    else:
        return Reference(model, f"the champion ({champion})", "it is the model in use")
    if baseline is None or baseline.run_id == best.run_id:
        return None
    return Reference(baseline, f"the baseline trial ({baseline.trial:03d})", reason)


def _same_images(first: ModelFacts, second: ModelFacts) -> bool:
    return first.classes == second.classes and np.array_equal(first.confusion.sum(axis=1), second.confusion.sum(axis=1))


def _pixels(
    best: ModelFacts | None, trial_storage: TrialStorage, run: Run, data_dir: Path | None
) -> tuple[dict[int, npt.NDArray[np.uint8]], str | None]:
    """Take the examples of confused images from the data, where they are on this machine's disk."""
    wanted = sorted({index for pair in best.pairs for index in pair.examples}) if best else []
    if not wanted:
        return {}, "the run does not name them"
    dataset, limit = run.data.params["dataset"], run.data.params["limit_train"]
    try:
        source = locate(dataset, data_dir, may_download=False)
        data = load_dataset(source, None if limit == "None" else int(limit))
    except (BadInputError, DataError):
        return {}, f"{dataset} is missing or damaged on this machine; name its folder with --data-dir"
    if data.split_digest != trial_storage.attrs["split"]:
        return {}, "the images on this machine are divided in another way than this study's"
    return {index: data.validation.images[index] for index in wanted}, None


def _image_counts(run: Run) -> dict[str, int]:
    """Return how many images train and how many validate, by MLflow's word for the context; what is not known is 0."""
    return {
        str(tag.value): int(json.loads(entry.dataset.profile or "{}").get("images", 0))
        for entry in (run.inputs.dataset_inputs if run.inputs else ())
        for tag in entry.tags
        if tag.key == "mlflow.data.context"
    }


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


class Confusion(BaseModel):
    """A confusion matrix as it is logged: the true classes are the rows."""

    classes: Annotated[tuple[Text, ...], Field(min_length=2, max_length=1_000)]
    counts: tuple[tuple[Count, ...], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if [len(row) for row in self.counts] != [len(self.classes)] * len(self.classes):
            raise ValueError("expected a row and a column for each class")
        if len(set(self.classes)) < len(self.classes) or not any(map(any, self.counts)):
            raise ValueError("expected classes of different names, and images")
        return self


class Confused(BaseModel):
    """The most confused pairs as they are logged, and the indices of all mistakes where those are named."""

    pairs: tuple[ConfusedPair, ...] = ()
    mistakes: frozenset[Count] | None = None


def _read_command(settings: Mapping[str, str]) -> str:
    """Return the command that asks for a study again, quoted so that a shell sees one command and no more.

    Raises:
        ValueError: it is not a command of this project.
    """
    arguments = shlex.split(settings["command"])
    if arguments[:3] != STUDY_COMMAND or "--trials" not in arguments[:-1]:
        raise ValueError(f"expected a command that begins with {' '.join(STUDY_COMMAND)}")
    return shlex.join(arguments)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"expected finite numbers, found {text[:20]}")
    return value
