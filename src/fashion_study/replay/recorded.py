"""A training as its run records it: everything that is needed to repeat and to compare it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID

from fashion_study.data.catalog import KINDS
from fashion_study.errors import BadInputError, StoreError
from fashion_study.executors.local import threads_per_worker
from fashion_study.replay.choice import refuse_without_end
from fashion_study.text import printable
from fashion_study.tracking.attempt import Attempt, hyperparameters_of, read_attempt
from fashion_study.tracking.runs import provenance
from fashion_study.tracking.search import find_run, search_runs
from fashion_study.trial import (
    TRAINING_VERSION,
    Checkpoint,
    Precision,
    TrialSpec,
    TrialState,
)

CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
# What may decide the last bits, by its tag; in the order in which a difference is likely to.
ENVIRONMENT = {
    "training_version": "version of the training code",
    MLFLOW_GIT_COMMIT: "commit of the code",
    "tensorflow": "tensorflow",
    "keras": "keras",
    "numpy": "numpy",
    "device": "device",
    "threads": "threads",
    "instruction_sets": "instruction sets",
    "onednn": "oneDNN's kernels",
    "cpu": "processor",
    "host": "host",
}

Curves = Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Images:
    """The images of a training: their data set, its digest, that of the split, and a limit on their number."""

    dataset: str
    digest: str
    split_digest: str
    limit_train: int | None


@dataclass(frozen=True)
class Recorded:
    """One training as it was recorded.

    `curves` are by epoch and figure, `metrics` the final ones; `environment` has what is known of it, by tag.
    `assumed_threads` says that the run does not name its threads.
    """

    study: str
    spec: TrialSpec
    state: TrialState
    epochs_run: int
    curves: Curves
    metrics: Mapping[str, float]
    weights: str | None
    images: Images
    threads: int
    assumed_threads: bool
    environment: Mapping[str, str]

    @property
    def label(self) -> str:
        """Return what was trained."""
        return f"{self.spec.label} of study {self.study}"


def read_recorded(client: MlflowClient, run_id: str, study: str | None = None) -> Recorded:
    """Read the training of the one run whose id begins with `run_id`; where a `study` is named, it is one of it.

    Raises:
        BadInputError: no run or several begin so, or it is none of a trial or repeat that came to its end.
        StoreError: the store cannot be read, or what is needed is missing from it.
    """
    with _reading(run_id):
        run = find_run(client, run_id) if len(run_id) == 32 else None
        run = run or _only_run(client, run_id)
        attempt = _attempt(run, study)
        family = client.get_run(run.data.tags[MLFLOW_PARENT_RUN_ID]).data
        threads = run.data.tags.get("threads")
        return Recorded(
            study=run.data.tags["study"],
            spec=_spec(run, attempt),
            state=attempt.outcome or TrialState.FAILED,
            epochs_run=attempt.epochs_run,
            curves=_curves(client, run.info.run_id),
            metrics=run.data.metrics,
            weights=run.data.tags.get("weights_sha256"),
            images=_images(run, family.params),
            threads=int(threads or threads_per_worker(int(family.tags["workers"]))),
            assumed_threads=threads is None,
            environment=select(run.data.tags | family.params),
        )


def environment_here(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of this process and of a worker that answered with `tags`."""
    return select(provenance() | {"training_version": str(TRAINING_VERSION)} | dict(tags))


def select(attrs: Mapping[str, str]) -> dict[str, str]:
    """Return the entries that describe an environment."""
    return {name: attrs[name] for name in ENVIRONMENT if name in attrs}


@contextmanager
def _reading(run_id: str) -> Iterator[None]:
    """Raise StoreError for a run whose tags or parameters were altered, as a user can in MLflow's UI."""
    try:
        yield
    except (KeyError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise StoreError(
            f"The run {run_id} cannot be replayed: {printable(reason)}. Expected every parameter and tag that its "
            "study gave it. python -m experiments.doctor looks for damage."
        ) from error


def _only_run(client: MlflowClient, beginning: str) -> Run:
    experiments = [str(experiment.experiment_id) for experiment in client.search_experiments()]
    found = search_runs(client, experiments, f"attributes.run_id LIKE '{beginning}%'") if experiments else []
    if len(found) == 1:
        return found[0]
    several = f"{len(found)} runs have an id that begins" if found else "No run has an id that begins"
    raise BadInputError(f"{several} with {beginning!r}. Expected one; its id is shown by python -m experiments.ui.")


def _attempt(run: Run, study: str | None) -> Attempt:
    attempt, tags = read_attempt(run), run.data.tags
    if tags.get("kind") not in ("trial", "finalist"):
        raise BadInputError(
            f"The run {run.info.run_id} is none of a trial or of a finalist's repeat: its kind is "
            f"{printable(tags.get('kind', 'unknown'))}. Expected one of these."
        )
    if study not in (None, tags["study"]):
        raise BadInputError(f"The run {run.info.run_id} belongs to study {tags['study']!r}, not to {study!r}.")
    label = f"{attempt.label} of study {tags['study']} (run {run.info.run_id[:8]})"
    refuse_without_end(label, attempt.outcome, attempt.reason)
    return attempt


def _spec(run: Run, attempt: Attempt) -> TrialSpec:
    tags = run.data.tags
    return TrialSpec(
        attempt.trial,
        attempt.number,
        hyperparameters_of(run),
        int(tags["seed"]),
        run.info.run_id,
        Precision(tags["precision"]),
        attempt.repeat,
        _checkpoint(tags),
    )


def _checkpoint(tags: Mapping[str, str]) -> Checkpoint | None:
    """Return from where a training went on; None where it began at its first epoch."""
    if "continued_after_epoch" not in tags:
        return None
    return Checkpoint(int(tags["continues_trial"]), tags["continues_run"], int(tags["continued_after_epoch"]))


def _curves(client: MlflowClient, run_id: str) -> Curves:
    curves: dict[int, dict[str, float]] = {}
    for name in CURVES:
        for point in client.get_metric_history(run_id, name):
            curves.setdefault(point.step, {})[name] = point.value
    return curves


def _images(run: Run, study_params: Mapping[str, str]) -> Images:
    digests = {entry.dataset.digest for entry in (run.inputs.dataset_inputs if run.inputs else ())}
    if len(digests) != 1:
        raise ValueError("it does not name its images")
    limit = study_params["limit_train"]
    return Images(
        dataset=KINDS[study_params["dataset"]].name,
        digest=study_params["data_digest"],
        split_digest=digests.pop(),
        limit_train=None if limit == "None" else int(limit),
    )
