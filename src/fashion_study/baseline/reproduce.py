"""The reproduction of the blog post's model: trained exactly, in both input scales, and measured on the holdout."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from rich import box
from rich.table import Table

from fashion_study.data.catalog import PREFERRED, describe, load_pool
from fashion_study.data.dataset import PublishedFigures
from fashion_study.data.holdout import load_holdout
from fashion_study.errors import StoreError, StudyError
from fashion_study.executors.local import LocalExecutor, default_workers, threads_per_worker
from fashion_study.libraries import import_without_stderr, stderr_into
from fashion_study.store.failures import store_failures
from fashion_study.store.locks import claim
from fashion_study.store.store import Store
from fashion_study.study.loop import Loop, Source
from fashion_study.study.progress import Observer
from fashion_study.tracking.aliases import ConcurrentUpdateError, PromotionRunningError, promotion_lock, set_champion
from fashion_study.tracking.registry import ModelRef, Registry
from fashion_study.tracking.runs import code_commit, code_digest, provenance
from fashion_study.trial import (
    AttemptLost,
    DataSource,
    EpochReport,
    FailReason,
    Hyperparameters,
    ParamValue,
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

Scale = Literal["raw", "unit"]
SCALES: dict[Scale, str] = {"raw": "raw pixels, 0 to 255", "unit": "scaled to 0 to 1"}


@dataclass(frozen=True)
class Figures(PublishedFigures):
    """The figures of a training; `run_id` is the MLflow run that they come from."""

    run_id: str = ""


@dataclass(frozen=True)
class Reproduction:
    """The figures of every seed by input scale, and the MLflow run above the runs of the trainings.

    `version` says in words what was registered.
    """

    source: DataSource
    run_id: str
    figures: dict[Scale, tuple[Figures, ...]]
    version: str | None = None


def reproduce_baseline(
    source: DataSource, store: Store, seeds: int = 1, workers: int | None = None, *, register: bool = False
) -> Reproduction:
    """Train the post's model for each seed and input scale on all training images, and read the holdout.

    Every training is an MLflow run of its own under one parent run, which counts the readings of the holdout. With
    `register` one of the models becomes a version, and champion where there is none.

    Raises:
        StudyError: a worker died, or a training diverged.
        StoreError: the store gives up.
    """
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
        trainings = _Trainings(client, store, source, experiment_id, run_id, seeds)
        workers = min(workers or default_workers(), len(trainings.left))
        settings = WorkerSettings(source, None, threads_per_worker(workers), store.tracking_uri, pool=True)
        try:
            with closing(LocalExecutor(settings, workers, trainings.log_dir)) as executor:
                Loop(trainings, executor, Observer()).run()
        finally:
            # The runs of trainings that did not come to their end.
            below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}' and attributes.status = 'RUNNING'"
            for run in client.search_runs([experiment_id], below):
                client.set_terminated(run.info.run_id, "KILLED")
        figures = {scale: tuple(trainings.found[scale, seed] for seed in range(seeds)) for scale in SCALES}
        _log_metrics(client, run_id, _summary(figures))
    # The trainings are done, whatever becomes of the registration.
    if not register:
        return Reproduction(source, run_id, figures)
    with store_failures(store, f"The trainings are kept in MLflow's run {run_id}; register again when it answers."):
        return Reproduction(source, run_id, figures, _register(client, store, source, figures["raw"]))


class _Trainings(Source):
    """The trainings of a reproduction as the work of a loop; `found` has the figures of those that are done."""

    def __init__(
        self, client: MlflowClient, store: Store, source: DataSource, experiment_id: str, parent_run: str, seeds: int
    ) -> None:
        self._client = client
        self._source = source
        self._experiment_id = experiment_id
        self._parent_run = parent_run
        self.log_dir = store.root / "logs" / "baseline"
        self._images = len(load_pool(source).labels)
        jobs = enumerate((seed, scale) for seed in range(seeds) for scale in SCALES)
        self.left = [TrialSpec(n, 1, Hyperparameters(input_scale=scale), seed) for n, (seed, scale) in jobs]
        self._total = len(self.left)
        self._train_accuracy: dict[str, float] = {}
        self.found: dict[tuple[Scale, int], Figures] = {}

    def next(self) -> TrialSpec | None:
        """Take the first training that is left."""
        return self.left.pop(0) if self.left else None

    def begin(self, spec: TrialSpec) -> TrialSpec:
        """Open the run of a training."""
        scale = spec.hyperparameters.input_scale
        tags = provenance() | {
            MLFLOW_PARENT_RUN_ID: self._parent_run,
            "kind": "baseline",
            "input_scale": scale,
            "seed": str(spec.seed),
            "data_digest": self._source.digest,
        }
        name = f"baseline {scale}, seed {spec.seed}"
        run_id = self._client.create_run(self._experiment_id, tags=tags, run_name=name).info.run_id
        settings = spec.hyperparameters.model_dump() | {"seed": spec.seed, "train_images": self._images}
        self._client.log_batch(run_id, params=[Param(name, str(value)) for name, value in settings.items()])
        return replace(spec, run_id=run_id)

    def log_epochs(self, spec: TrialSpec, *reports: EpochReport) -> None:
        """Add epochs to the run's curves, and print what they reached."""
        for report in reports:
            curves = {
                "train_loss": report.train_loss,
                "train_accuracy": report.train_accuracy,
                "epoch_seconds": report.seconds,
                "images_per_second": report.images_per_second,
            }
            _log_metrics(self._client, spec.run_id, curves, step=report.epoch)
            reached = f"epoch {report.epoch}, train accuracy {report.train_accuracy:.4f}, {report.seconds:.0f} s"
            print(f"{spec.hyperparameters.input_scale}, seed {spec.seed}: {reached}", flush=True)
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
            with stderr_into(self.log_dir / "holdout.log"):
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
            f"--workers 1 trains one at a time. What it printed is in {self.log_dir}."
        )

    def _evaluate(self, spec: TrialSpec, result: TrialResult) -> "Evaluation":
        """Evaluate the model that the worker has logged, and log metrics, figures and tables."""
        # Imported here: TensorFlow takes seconds.
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


def _register(client: MlflowClient, store: Store, source: DataSource, trained: tuple[Figures, ...]) -> str:
    """Register the model on raw pixels with the median training accuracy, make it champion where there is none.

    The training accuracy decides which seed it is: the holdout chooses nothing.
    """
    chosen = sorted(trained, key=lambda figures: figures.train_accuracy)[(len(trained) - 1) // 2]
    run = client.get_run(chosen.run_id)
    registry = Registry(client)
    tags: dict[str, ParamValue] = {
        "kind": "baseline",
        "run": chosen.run_id,
        "train_accuracy": chosen.train_accuracy,
        "dataset": source.name,
        "data_digest": source.digest,
        "code_digest": code_digest(),
        "git_commit": code_commit() or "",
        "parameter_count": int(run.data.metrics["parameter_count"]),
    }
    version, became = registry.register(source.name, run, tags), "champion: there was none"
    try:
        with promotion_lock(store.root, PROMOTION_SECONDS):
            model = registry.model(version.name)
            if model.champion is None:
                set_champion(registry, model, version)
            else:
                became = f"the champion stays version {model.champion.number}"
    except ConcurrentUpdateError:
        became = "not champion: another command moved the alias at the same time"
    except PromotionRunningError:
        became = "not champion: a promotion or the doctor is at work there"
    return f"{version} ({became})"


def _summary(figures: dict[Scale, tuple[Figures, ...]]) -> dict[str, float]:
    measured = {
        f"{scale}_{figure}": [getattr(one, figure) for one in many]
        for scale, many in figures.items()
        for figure in ("train_accuracy", "holdout_accuracy")
    }
    means = {f"{name}_mean": mean(values) for name, values in measured.items()}
    return means | {f"{name}_sd": stdev(values) for name, values in measured.items() if len(values) > 1}


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


def _log_metrics(client: MlflowClient, run_id: str, values: dict[str, float], step: int = 0) -> None:
    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in values.items()])


def comparison(reproduction: Reproduction) -> Table:
    """Lay the figures out beside the post's; on other data than the post's there is no such column."""
    source, kind = reproduction.source, describe(reproduction.source.name)
    columns: dict[str, Sequence[PublishedFigures]] = {
        SCALES[scale]: many for scale, many in reproduction.figures.items()
    }
    if kind.published is not None:
        columns = {"the post": (kind.published,)} | columns
    seeds = len(reproduction.figures["raw"])
    title = f"The baseline on {source.name}" + (f" (a FALLBACK: not {PREFERRED.title})" if source.is_fallback else "")
    counted = "" if seeds == 1 else f", {seeds} seeds: mean ± standard deviation"
    table = Table(
        title=title + counted, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("accuracy", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right")
    for label, attribute in (("train", "train_accuracy"), ("holdout", "holdout_accuracy")):
        table.add_row(label, *(_percent([getattr(one, attribute) for one in many]) for many in columns.values()))
    table.add_section()
    table.add_row("by class", *[f"{'precision':>9} {'recall':>9}"] * len(columns), style="dim")
    for name in kind.class_names:
        pairs = (zip(*(one.by_class[name] for one in many), strict=True) for many in columns.values())
        table.add_row(name, *("{} {:>9}".format(*map(_share, pair)) for pair in pairs))
    return table


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread} %"


def _share(values: Sequence[float]) -> str:
    spread = f"±{stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}"
