"""The blog post's model, trained exactly, in both input scales, and measured on the holdout."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
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
from fashion_study.errors import StudyError
from fashion_study.executors.local import MALLOC, default_workers, threads_per_worker
from fashion_study.store.failures import store_failures
from fashion_study.store.locks import claim
from fashion_study.store.store import open_store
from fashion_study.tracking.aliases import Champions, ConcurrentUpdateError, PromotionRunningError, promotion_lock
from fashion_study.tracking.provenance import code_commit, code_digest
from fashion_study.tracking.registry import Candidate, Registry, Version
from fashion_study.trial import DataSource, Hyperparameters

if TYPE_CHECKING:
    from fashion_study.training.evaluation import Evaluation
    from fashion_study.training.fit import Epoch


# A promotion reads the holdout, which takes about so long.
PROMOTION_SECONDS = 30.0


@dataclass(frozen=True)
class BaselineConfig:
    """Say on what to train the baseline, how often, where to keep the runs, and whether to register a model."""

    source: DataSource
    seeds: int = 1
    store: Path = Path("mlruns")
    workers: int | None = None
    register: bool = False


@dataclass(frozen=True)
class _Job:
    scale: Scale
    seed: int
    source: DataSource
    tracking_uri: str
    experiment_id: str
    parent_run_id: str


def reproduce_baseline(config: BaselineConfig) -> Reproduction:
    """Train the post's model for each seed and input scale on all training images, and read the holdout.

    Every training is an MLflow run of its own under one parent run, which counts the readings of the holdout.

    Raises:
        StudyError: a training process was killed, or a training diverged.
        StoreError: the store gives up.
    """
    source = config.source
    store = open_store(config.store)
    client = store.client()
    experiment_id = store.experiment_id(client, source.name)
    # The lock says that these runs have a living owner, for as long as they have.
    lock = f"reproduction-{uuid4().hex}"
    tags = {"kind": "baseline reproduction", "lock": lock}
    with (
        store_failures(store, "What was trained before is kept; reproduce the baseline again when it answers."),
        claim(store.root, lock),
        _run(client, experiment_id, "baseline reproduction", tags) as run_id,
    ):
        jobs = [
            _Job(scale, seed, source, store.tracking_uri, experiment_id, run_id)
            for seed in range(config.seeds)
            for scale in SCALES
        ]
        try:
            workers = min(config.workers or default_workers(), len(jobs))
            found = _train_all(client, jobs, workers, store.root / "logs" / "baseline.log")
        finally:
            _close_abandoned(client, experiment_id, run_id)
        figures = {scale: tuple(found[scale, seed] for seed in range(config.seeds)) for scale in SCALES}
        _log_metrics(client, run_id, _summary(figures))
    # The trainings are done, whatever becomes of the registration.
    version = None
    if config.register:
        with store_failures(store, f"The trainings are kept in MLflow's run {run_id}; register again when it answers."):
            version = _register(client, store.root, source, figures["raw"])
    return Reproduction(source, run_id, figures, version)


def _register(client: MlflowClient, root: Path, source: DataSource, trained: tuple[Figures, ...]) -> str:
    """Register the model on raw pixels with the median training accuracy; the first version becomes champion.

    The training accuracy decides which seed it is: the holdout chooses nothing.
    """
    chosen = sorted(trained, key=lambda figures: figures.train_accuracy)[(len(trained) - 1) // 2]
    run = client.get_run(chosen.run_id).data
    registry = Registry(client)
    version = registry.register(
        Candidate(
            dataset=source.name,
            run_id=chosen.run_id,
            model_uri=run.tags["model_uri"],
            sha256=run.tags["model_sha256"],
            tags={
                "kind": "baseline",
                "run": chosen.run_id,
                "train_accuracy": chosen.train_accuracy,
                "dataset": source.name,
                "data_digest": source.digest,
                "code_digest": code_digest(),
                "git_commit": code_commit() or "",
                "parameter_count": int(run.metrics["parameter_count"]),
            },
        )
    )
    return f"{version} ({_set_first_champion(client, root, version)})"


def _set_first_champion(client: MlflowClient, root: Path, version: Version) -> str:
    """Make a version champion where there is none, and say what became of it."""
    champions = Champions(client, version.name)
    try:
        with promotion_lock(root, PROMOTION_SECONDS):
            if (champion := champions.current()) is not None:
                return f"the champion stays version {champion.number}"
            champions.set_champion(version, None)
    except ConcurrentUpdateError:
        return "not champion: another command moved the alias at the same time"
    except PromotionRunningError:
        return "not champion: a promotion or the doctor is at work there"
    return "champion: there was none"


def _train_all(client: MlflowClient, jobs: list[_Job], workers: int, log: Path) -> dict[tuple[Scale, int], Figures]:
    found: dict[tuple[Scale, int], Figures] = {}
    try:
        with _processes(workers, log) as pool:
            futures = {pool.submit(_train, job): job for job in jobs}
            for future in as_completed(futures):
                job = futures[future]
                found[job.scale, job.seed] = future.result()
                _log_metrics(client, job.parent_run_id, {"holdout_readings": len(found)}, step=len(found))
    except BrokenProcessPool as error:
        raise StudyError(
            f"A training process ended unexpectedly, {len(found)} of {len(jobs)} trainings done. "
            f"Expected about 1.5 GiB of memory for each; --workers 1 trains one at a time. See {log}."
        ) from error
    return found


@contextmanager
def _processes(count: int, log: Path) -> Iterator[ProcessPoolExecutor]:
    """Start processes that import TensorFlow, so that this one does not; they end with it."""
    log.parent.mkdir(exist_ok=True)
    # A new process takes its environment from this one, and reads these before Python starts.
    os.environ.update(MALLOC)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    pool = ProcessPoolExecutor(
        count,
        mp_context=get_context("spawn"),
        initializer=_begin_process,
        initargs=(threads_per_worker(count), log),
    )
    try:
        yield pool
    except BaseException:
        for child in active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process(threads: int, log: Path) -> None:
    # TensorFlow's own messages, of no use on a user's terminal.
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from fashion_study.training.fit import configure

    configure(threads)


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
    os._exit(1)


def _train(job: _Job) -> Figures:
    """Train and measure once, in a process of its own."""
    from fashion_study.training.evaluation import evaluate
    from fashion_study.training.fit import FitEnd, fit, seed_training
    from fashion_study.training.model import build_model, to_float32
    from fashion_study.worker.record import record_evaluation, record_model

    client = MlflowClient(job.tracking_uri)
    params = Hyperparameters(input_scale=job.scale)
    kind = describe(job.source.name)
    class_names = kind.class_names
    images = load_pool(job.source)
    with _run(client, job.experiment_id, f"baseline {job.scale}, seed {job.seed}", _tags(job)) as run_id:
        settings = params.model_dump() | {"seed": job.seed, "train_images": len(images.labels)}
        client.log_batch(run_id, params=[Param(name, str(value)) for name, value in settings.items()])
        seed_training(job.seed)
        model = build_model(params, kind.image_shape, len(class_names))
        outcome = fit(model, images, None, params, job.seed, lambda epoch: _report(client, run_id, job, epoch))
        last = outcome.epochs[-1]
        if outcome.end is not FitEnd.COMPLETED:
            raise StudyError(
                f"The baseline ({job.scale}, seed {job.seed}) diverged in epoch {last.number}: its loss is "
                f"{last.train_loss}. Expected a finite one. Report it, with the MLflow run {run_id}."
            )
        # Counted before it is read, so that no reading escapes the count.
        _log_metrics(client, run_id, {"holdout_readings": 1})
        holdout = load_holdout(job.source)
        float32_model = to_float32(model, params)
        evaluation = evaluate(float32_model, holdout, class_names)
        _log_metrics(client, run_id, _final_metrics(evaluation, model.count_params(), outcome.train_seconds))
        record_evaluation(client, run_id, evaluation, holdout, job.seed)
        logged = record_model(client, run_id, float32_model, params)
        for name, value in (("model_uri", logged.uri), ("model_sha256", logged.sha256)):
            client.set_tag(run_id, name, value)
    by_class = {name: (evaluation.precision[name], evaluation.recall[name]) for name in class_names}
    return Figures(last.train_accuracy, evaluation.accuracy, by_class, run_id)


def _tags(job: _Job) -> dict[str, str]:
    tags = {
        MLFLOW_PARENT_RUN_ID: job.parent_run_id,
        "kind": "baseline",
        "input_scale": job.scale,
        "seed": str(job.seed),
        "data_digest": job.source.digest,
    }
    return tags | ({MLFLOW_GIT_COMMIT: commit} if (commit := code_commit()) else {})


def _report(client: MlflowClient, run_id: str, job: _Job, epoch: "Epoch") -> bool:
    curves = {
        "train_loss": epoch.train_loss,
        "train_accuracy": epoch.train_accuracy,
        "epoch_seconds": epoch.seconds,
        "images_per_second": epoch.images_per_second,
    }
    _log_metrics(client, run_id, curves, step=epoch.number)
    reached = f"train accuracy {epoch.train_accuracy:.4f}, {epoch.seconds:.0f} s"
    print(f"{job.scale}, seed {job.seed}: epoch {epoch.number}, {reached}", flush=True)
    return True


def _final_metrics(evaluation: "Evaluation", parameter_count: int, train_seconds: float) -> dict[str, float]:
    from fashion_study.worker.record import by_class

    return {
        "holdout_accuracy": evaluation.accuracy,
        "holdout_macro_f1": evaluation.macro_f1,
        "parameter_count": parameter_count,
        "train_seconds": train_seconds,
        "ms_per_image": evaluation.ms_per_image,
        **by_class("holdout_precision", evaluation.precision),
        **by_class("holdout_recall", evaluation.recall),
    }


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
def _run(client: MlflowClient, experiment_id: str, name: str, tags: dict[str, str]) -> Iterator[str]:
    """Open an MLflow run and end it with the status that the block deserves."""
    run_id = str(client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)
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
    """End the runs of processes that were ended before they could do so."""
    condition = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent_run_id}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment_id], condition):
        client.set_terminated(run.info.run_id, "KILLED")


def _log_metrics(client: MlflowClient, run_id: str, values: dict[str, float], step: int = 0) -> None:
    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in values.items()])
