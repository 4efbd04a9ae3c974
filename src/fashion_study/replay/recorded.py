"""A training as its run records it: everything that is needed to repeat and to compare it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID

from fashion_study.data.catalog import KINDS
from fashion_study.errors import BadInputError, StoreError
from fashion_study.executors.local import threads_per_worker
from fashion_study.store.store import Store
from fashion_study.store.studies import open_study
from fashion_study.text import printable
from fashion_study.tracking.attempt import Attempt, hyperparameters_of, read_attempt
from fashion_study.tracking.search import all_pages, search_runs
from fashion_study.trial import EarlierTrial, FailReason, Precision, TrialSpec, TrialState

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
    "library_variables": "variables that TensorFlow and its libraries read",
    "cpu": "processor",
    "host": "host",
}
# What ended a trial but not its training, in the middle of an epoch or after the last one.
BESIDES_TRAINING = {
    FailReason.TIMEOUT: "it took longer than --trial-timeout, which says how fast the machine was",
    FailReason.OOM: "it ran out of memory, which says how much the machine had left",
    FailReason.ERROR: "it ended with an error; failure.txt on its run has the traceback",
    FailReason.INFEASIBLE: "its model was larger than --max-parameters, so that it was not trained",
    FailReason.INTERRUPTED: "it was stopped from outside too often and given up",
}

Curves = Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Recorded:
    """One training as it was recorded.

    `curves` are by epoch and figure, `metrics` the final ones. `split_digest` and `limit_train` say which images of
    the data set were trained on. `assumed_threads`: the run does not name its threads. `environment` has the tags and
    parameters of its run and its study's, which say what is known of it.
    """

    study: str
    spec: TrialSpec
    state: TrialState
    epochs_run: int
    curves: Curves
    metrics: Mapping[str, float]
    dataset: str
    data_digest: str
    split_digest: str
    limit_train: int | None
    threads: int
    assumed_threads: bool
    environment: Mapping[str, str]

    @property
    def label(self) -> str:
        """Return what was trained."""
        return f"{self.spec.label} of study {self.study}"


def run_of_trial(store: Store, number: int, study: str | None) -> str:
    """Return the id of a trial's current run, in the study that was worked on last where none is named.

    Raises:
        BadInputError: there is no such study or trial, or the trial has no end that could be compared.
        StoreError: the store has no trial storage.
    """
    if not store.has_trials:
        raise StoreError(
            f"There is no trial storage in {store.root}: it has no optuna.db. Expected the folder of an earlier study. "
            "Name it with --store, set OPTUNA_STORAGE, or name a run instead of a trial's number."
        )
    with store.optuna_storage() as storage:
        trial_storage = open_study(store, storage, study)
        records = {record.number: record for record in trial_storage.records()}
    label = f"trial {number:03d} of study {trial_storage.name}"
    if (record := records.get(number)) is None:
        found = f"it has the trials 0 to {max(records)}" if records else "it has none yet"
        raise BadInputError(f"There is no {label}: {found}. Expected one of these; name another study with --study.")
    _refuse_without_end(label, record.state, record.reason)
    if record.run_id is None:
        raise StoreError(
            f"The trial storage names no run of {label}. Expected one for a trial that has ended. "
            "python -m experiments.doctor looks for damage."
        )
    return record.run_id


def read_recorded(client: MlflowClient, run_id: str, study: str | None = None) -> Recorded:
    """Read the training of the one run whose id begins with `run_id`; where a `study` is named, it is one of it.

    Raises:
        BadInputError: no run or several begin so, or it is none of a trial or repeat that came to its end.
        StoreError: the store cannot be read, or its tags and parameters were altered, as a user can in MLflow's UI.
    """
    try:
        experiments = all_pages(client.search_experiments, view_type=ViewType.ALL)
        ids = [str(experiment.experiment_id) for experiment in experiments]
        runs = search_runs(client, ids, f"attributes.run_id LIKE '{run_id}%'")
        if len(runs) != 1:
            found = f"{len(runs)} runs have an id that begins" if runs else "No run has an id that begins"
            raise BadInputError(f"{found} with {run_id!r}. Expected one; its id is shown by python -m experiments.ui.")
        return _recorded(client, runs[0], _ended_attempt(runs[0], study))
    except (KeyError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise StoreError(
            f"The run {run_id} cannot be replayed: {printable(reason)}. Expected every parameter and tag that its "
            "study gave it. python -m experiments.doctor looks for damage."
        ) from error


def _ended_attempt(run: Run, study: str | None) -> Attempt:
    attempt, tags = read_attempt(run), run.data.tags
    if tags.get("kind") not in ("trial", "finalist"):
        raise BadInputError(
            f"The run {run.info.run_id} is none of a trial or of a finalist's repeat: its kind is "
            f"{printable(tags.get('kind', 'unknown'))}. Expected one of these."
        )
    if study not in (None, tags["study"]):
        raise BadInputError(f"The run {run.info.run_id} belongs to study {tags['study']!r}, not to {study!r}.")
    label = f"{attempt.label} of study {tags['study']} (run {run.info.run_id[:8]})"
    _refuse_without_end(label, attempt.outcome, attempt.reason)
    return attempt


def _refuse_without_end(label: str, state: TrialState | None, reason: FailReason | None) -> None:
    """Refuse a training that did not come to an end of its own; `state` None: its run says nothing of an end."""
    if state in (TrialState.COMPLETE, TrialState.PRUNED) or reason is FailReason.DIVERGED:
        return
    why = "it has not ended" if reason is None else BESIDES_TRAINING[reason]
    raise BadInputError(
        f"{label[0].upper()}{label[1:]} cannot be compared with itself: {why}. "
        "Expected a trial that is complete, pruned or diverged. Name another one."
    )


def _recorded(client: MlflowClient, run: Run, attempt: Attempt) -> Recorded:
    tags = run.data.tags
    family = client.get_run(tags[MLFLOW_PARENT_RUN_ID]).data
    threads, limit = tags.get("threads"), family.params["limit_train"]
    splits = {entry.dataset.digest for entry in (run.inputs.dataset_inputs if run.inputs else ())}
    if len(splits) != 1:
        raise ValueError("it does not name its images")
    curves: dict[int, dict[str, float]] = defaultdict(dict)
    for name in CURVES:
        for point in client.get_metric_history(run.info.run_id, name):
            curves[point.step][name] = point.value
    return Recorded(
        study=tags["study"],
        spec=_spec(run, attempt),
        state=attempt.outcome or TrialState.FAILED,
        epochs_run=attempt.epochs_run,
        curves=curves,
        metrics=run.data.metrics,
        dataset=KINDS[family.params["dataset"]].name,
        data_digest=family.params["data_digest"],
        split_digest=splits.pop(),
        limit_train=None if limit == "None" else int(limit),
        threads=int(threads or threads_per_worker(int(family.tags["workers"]))),
        assumed_threads=threads is None,
        environment=tags | family.params,
    )


def _spec(run: Run, attempt: Attempt) -> TrialSpec:
    tags, continues = run.data.tags, None
    if "continued_after_epoch" in tags:
        seeds = (each.split(":") for each in tags.get("earlier_seeds", "").split())
        continues = EarlierTrial(
            int(tags["continues_trial"]),
            tags["continues_run"],
            int(tags["continued_after_epoch"]),
            tuple((int(seed), int(last)) for seed, last in seeds),
        )
    return TrialSpec(
        attempt.trial,
        attempt.number,
        hyperparameters_of(run.data.params, f"run {run.info.run_id}"),
        int(tags["seed"]),
        run.info.run_id,
        Precision(tags["precision"]),
        attempt.repeat,
        continues,
    )
