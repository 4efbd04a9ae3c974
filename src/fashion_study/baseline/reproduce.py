"""The reproduction of the blog post's model: trained exactly, in both input scales, and measured on the holdout."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING
from uuid import uuid4

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID

from fashion_study.baseline.table import SCALES, Figures, Reproduction, Scale
from fashion_study.data.catalog import describe, load_pool
from fashion_study.data.holdout import load_holdout
from fashion_study.errors import StoreError, StudyError
from fashion_study.executors.local import LocalExecutor, default_workers, threads_per_worker
from fashion_study.stderr import import_without_stderr, stderr_into
from fashion_study.store.failures import store_failures
from fashion_study.store.locks import claim
from fashion_study.store.store import open_store
from fashion_study.study.loop import Loop, Source
from fashion_study.study.progress import NullObserver
from fashion_study.tracking.aliases import ConcurrentUpdateError, PromotionRunningError, promotion_lock, set_champion
from fashion_study.tracking.registry import ModelRef, Registry, Version
from fashion_study.tracking.runs import code_commit, code_digest
from fashion_study.trial import (
    AttemptLost,
    DataSource,
    EpochReport,
    FailReason,
    Hyperparameters,
    TrialResult,
    TrialSpec,
    TrialState,
    WorkerSettings,
)

if TYPE_CHECKING:
    from fashion_study.training.evaluation import Evaluation

# The name and the kind of the run above those of the trainings.
PARENT = "baseline reproduction"
# A promotion reads the holdout, which takes about so long.
PROMOTION_SECONDS = 30.0


@dataclass(frozen=True)
class BaselineConfig:
    """What to train the baseline on, how often, where to keep the runs, and whether to register a model."""

    source: DataSource
    seeds: int = 1
    store: Path = Path("mlruns")
    workers: int | None = None
    register: bool = False


def reproduce_baseline(config: BaselineConfig) -> Reproduction:
    """Train the post's model for each seed and input scale on all training images, and read the holdout.

    Every training is an MLflow run of its own under one parent run, which counts the readings of the holdout.

    Raises:
        StudyError: a worker died, or a training diverged.
        StoreError: the store gives up.
    """
    source = config.source
    store = open_store(config.store)
    client = store.client()
    experiment_id = store.experiment_id(client, source.name)
    # The lock says that these runs have a living owner, for as long as they have.
    lock = f"reproduction-{uuid4().hex}"
    tags = {"kind": PARENT, "lock": lock}
    with (
        store_failures(store, "What was trained before is kept; reproduce the baseline again when it answers."),
        claim(store.root, lock),
        _ending(client, client.create_run(experiment_id, tags=tags, run_name=PARENT).info.run_id) as run_id,
    ):
        log_dir = store.root / "logs" / "baseline"
        trainings = _Trainings(client, source, experiment_id, run_id, config.seeds, log_dir)
        workers = min(config.workers or default_workers(), config.seeds * len(SCALES))
        settings = WorkerSettings(source, None, threads_per_worker(workers), store.tracking_uri, pool=True)
        try:
            with closing(LocalExecutor(settings, workers, log_dir)) as executor:
                Loop(trainings, executor, NullObserver()).run()
        finally:
            _close_abandoned(client, experiment_id, run_id)
        figures = {scale: tuple(trainings.found[scale, seed] for seed in range(config.seeds)) for scale in SCALES}
        _log_metrics(client, run_id, _summary(figures))
    # The trainings are done, whatever becomes of the registration.
    version = None
    if config.register:
        with store_failures(store, f"The trainings are kept in MLflow's run {run_id}; register again when it answers."):
            version = _register(client, store.root, source, figures["raw"])
    return Reproduction(source, run_id, figures, version)


class _Trainings(Source):
    """The trainings of a reproduction as the work of a loop; `found` has the figures of those that are done."""

    def __init__(
        self, client: MlflowClient, source: DataSource, experiment_id: str, parent_run: str, seeds: int, log_dir: Path
    ) -> None:
        self._client = client
        self._source = source
        self._experiment_id = experiment_id
        self._parent_run = parent_run
        self._log_dir = log_dir
        self._images = len(load_pool(source).labels)
        jobs = [(seed, scale) for seed in range(seeds) for scale in SCALES]
        self._left = [
            TrialSpec(number, 1, Hyperparameters(input_scale=scale), seed) for number, (seed, scale) in enumerate(jobs)
        ]
        self._total = len(jobs)
        self._train_accuracy: dict[str, float] = {}
        self.found: dict[tuple[Scale, int], Figures] = {}

    def next(self) -> TrialSpec | None:
        """Take the first training that is left."""
        return self._left.pop(0) if self._left else None

    def begin(self, spec: TrialSpec) -> TrialSpec:
        """Open the run of a training."""
        scale = spec.hyperparameters.input_scale
        tags = {
            MLFLOW_PARENT_RUN_ID: self._parent_run,
            "kind": "baseline",
            "input_scale": scale,
            "seed": str(spec.seed),
            "data_digest": self._source.digest,
        } | ({MLFLOW_GIT_COMMIT: commit} if (commit := code_commit()) else {})
        name = f"baseline {scale}, seed {spec.seed}"
        run_id = self._client.create_run(self._experiment_id, tags=tags, run_name=name).info.run_id
        settings = spec.hyperparameters.model_dump() | {"seed": spec.seed, "train_images": self._images}
        self._client.log_batch(run_id, params=[Param(name, str(value)) for name, value in settings.items()])
        return replace(spec, run_id=run_id)

    def log_epoch(self, spec: TrialSpec, report: EpochReport) -> None:
        """Add an epoch to the run's curves, and print what it reached."""
        curves = {
            "train_loss": report.train_loss,
            "train_accuracy": report.train_accuracy,
            "epoch_seconds": report.seconds,
            "images_per_second": report.images_per_second,
        }
        _log_metrics(self._client, spec.run_id, curves, step=report.epoch)
        reached = f"train accuracy {report.train_accuracy:.4f}, {report.seconds:.0f} s"
        scale = spec.hyperparameters.input_scale
        print(f"{scale}, seed {spec.seed}: epoch {report.epoch}, {reached}", flush=True)
        self._train_accuracy[spec.run_id] = report.train_accuracy

    def settle(self, spec: TrialSpec, result: TrialResult) -> None:
        """Measure the model of a training on the holdout, which is counted before it is read."""
        with _ending(self._client, spec.run_id):
            if result.reason is FailReason.OOM:
                raise self._death(result.message)
            if result.state is not TrialState.COMPLETE:
                raise StudyError(
                    f"The baseline ({spec.hyperparameters.input_scale}, seed {spec.seed}) failed: {result.message}\n"
                    f"Expected it to be trained. Report it, with the MLflow run {spec.run_id}."
                )
            with stderr_into(self._log_dir / "holdout.log"):
                evaluation = self._evaluate(spec, result)
            for name in ("model_uri", "model_sha256"):
                self._client.set_tag(spec.run_id, name, result.tags[name])
        shown = {name: (evaluation.precision[name], evaluation.recall[name]) for name in evaluation.class_names}
        figures = Figures(self._train_accuracy[spec.run_id], evaluation.accuracy, shown, spec.run_id)
        self.found[spec.hyperparameters.input_scale, spec.seed] = figures
        done = len(self.found)
        _log_metrics(self._client, self._parent_run, {"holdout_readings": done}, step=done)

    def lose(self, spec: TrialSpec, lost: AttemptLost) -> TrialState:  # noqa: ARG002
        """End the reproduction."""
        if lost.by_store:
            raise StoreError(
                f"A training could not be written down: {lost.cause}. Expected the store to take it. "
                "What was trained before is kept; reproduce the baseline again when it answers."
            )
        raise self._death(lost.cause)

    def _death(self, cause: str) -> StudyError:
        return StudyError(
            f"A training process ended unexpectedly ({cause.rstrip('.')}), "
            f"{len(self.found)} of {self._total} trainings done. Expected about 1.5 GiB of memory for each; "
            f"--workers 1 trains one at a time. What it printed is in {self._log_dir}."
        )

    def _evaluate(self, spec: TrialSpec, result: TrialResult) -> "Evaluation":
        """Evaluate the model that the worker has logged, and log metrics, figures and tables."""
        # Imported here, and by its package, which chooses TensorFlow's kernels before that is imported.
        import_without_stderr("fashion_study.training.evaluation")
        from fashion_study.training.evaluation import evaluate
        from fashion_study.training.model_file import load_model_file
        from fashion_study.worker.record import by_class, record_evaluation

        logged = ModelRef(result.tags["model_uri"], result.tags["model_sha256"], spec.run_id, f"run {spec.run_id}")
        model = Registry(self._client).load(logged, load_model_file)
        # Counted before it is read, so that no reading escapes the count.
        _log_metrics(self._client, spec.run_id, {"holdout_readings": 1})
        holdout = load_holdout(self._source)
        evaluation = evaluate(model, holdout, describe(self._source.name).class_names)
        record_evaluation(self._client, spec.run_id, evaluation, holdout, spec.seed)
        metrics = {
            "holdout_accuracy": evaluation.accuracy,
            "holdout_macro_f1": evaluation.macro_f1,
            "ms_per_image": evaluation.ms_per_image,
            **by_class("holdout_precision", evaluation.precision),
            **by_class("holdout_recall", evaluation.recall),
        }
        _log_metrics(self._client, spec.run_id, metrics | result.metrics)
        return evaluation


def _register(client: MlflowClient, root: Path, source: DataSource, trained: tuple[Figures, ...]) -> str:
    """Register the model on raw pixels with the median training accuracy; the first version becomes champion.

    The training accuracy decides which seed it is: the holdout chooses nothing.
    """
    chosen = sorted(trained, key=lambda figures: figures.train_accuracy)[(len(trained) - 1) // 2]
    run = client.get_run(chosen.run_id)
    registry = Registry(client)
    version = registry.register(
        source.name,
        run,
        {
            "kind": "baseline",
            "run": chosen.run_id,
            "train_accuracy": chosen.train_accuracy,
            "dataset": source.name,
            "data_digest": source.digest,
            "code_digest": code_digest(),
            "git_commit": code_commit() or "",
            "parameter_count": int(run.data.metrics["parameter_count"]),
        },
    )
    return f"{version} ({_set_first_champion(registry, root, version)})"


def _set_first_champion(registry: Registry, root: Path, version: Version) -> str:
    """Make a version champion where there is none, and say what became of it."""
    try:
        with promotion_lock(root, PROMOTION_SECONDS):
            model = registry.model(version.name)
            if model.champion is not None:
                return f"the champion stays version {model.champion.number}"
            set_champion(registry, model, version)
    except ConcurrentUpdateError:
        return "not champion: another command moved the alias at the same time"
    except PromotionRunningError:
        return "not champion: a promotion or the doctor is at work there"
    return "champion: there was none"


def _summary(figures: dict[Scale, tuple[Figures, ...]]) -> dict[str, float]:
    values: dict[str, float] = {}
    for scale, many in figures.items():
        for attribute in ("train_accuracy", "holdout_accuracy"):
            measured = [getattr(one, attribute) for one in many]
            values[f"{scale}_{attribute}_mean"] = mean(measured)
            if len(measured) > 1:
                values[f"{scale}_{attribute}_sd"] = stdev(measured)
    return values


@contextmanager
def _ending(client: MlflowClient, run_id: str) -> Iterator[str]:
    """End an MLflow run with the status that the block deserves."""
    status = "FAILED"
    try:
        yield run_id
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        client.set_terminated(run_id, status)


def _close_abandoned(client: MlflowClient, experiment_id: str, parent_run_id: str) -> None:
    """End the runs of trainings that did not come to their end."""
    condition = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent_run_id}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment_id], condition):
        client.set_terminated(run.info.run_id, "KILLED")


def _log_metrics(client: MlflowClient, run_id: str, values: dict[str, float], step: int = 0) -> None:
    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in values.items()])
