"""One attempt at a trial, from its images to its result."""

import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import get_args

import keras
import mlflow
import numpy as np
import tensorflow as tf
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from fashion_study.data.catalog import describe, load_dataset, load_pool
from fashion_study.data.dataset import Split
from fashion_study.libraries import ONEDNN, left_to_the_user
from fashion_study.store.checkpoints import Checkpoints, UnusableCheckpointError
from fashion_study.text import truncated_traceback
from fashion_study.training.checkpoint import Checkpoint, load, save
from fashion_study.training.evaluation import Evaluation, accuracy, evaluate
from fashion_study.training.fit import FitOutcome, configure, fit, probe
from fashion_study.training.model import ModelTooLargeError, build_model, to_float32, with_views
from fashion_study.trial import (
    BASELINE_NUMBER,
    CONTINUATION_LOST,
    CONTINUED,
    ENVIRONMENT_CHANGED,
    AttemptLost,
    DataSource,
    Epoch,
    EpochReport,
    FailReason,
    ProbeOrder,
    ProbeResult,
    TrialResult,
    TrialSpec,
    TrialState,
    Views,
    WorkerSettings,
)
from fashion_study.worker.record import final_metrics, record_evaluation, record_model

# A line on the terminal, and a tag.
CAUSE_LENGTH = 300
# What decides the last bits and is the machine's: with others a training may go on, with other libraries not.
MACHINE = {"threads", "cpu", "instruction_sets"}
# The instruction sets for which TensorFlow and oneDNN have kernels of their own.
INSTRUCTION_SETS = re.compile(r"avx\w*|amx\w*|fma|asimd|asimddp|sve\w*|bf16|i8mm")


class Trainer:
    """A worker's images and its client for the runs, which all its attempts share.

    Where its settings say that nothing is recorded, it trains and measures in the same way.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        configure(settings.threads)
        mlflow.set_tracking_uri(settings.tracking_uri)
        self._settings = settings
        self._environment = environment(settings.threads)
        self._checkpoints = Checkpoints.of(settings)
        self._kind = describe(settings.source.name)
        self._train_images, self._validation = _images(settings.source, settings.limit_train, pool=settings.pool)

    @staticmethod
    def prepare(settings: WorkerSettings) -> None:
        """Read the images, which trainers in processes that are forked from this one share."""
        _images(settings.source, settings.limit_train, pool=settings.pool)

    @cached_property
    def _client(self) -> MlflowClient:
        # Opened with the first trial: by then the coordinator has made or migrated the database.
        return MlflowClient(self._settings.tracking_uri)

    def probe(self, order: ProbeOrder) -> ProbeResult:
        """Measure how fast this machine trains."""
        return probe(self._kind.image_shape, len(self._kind.class_names), order, self._settings.max_parameters)

    def train(self, spec: TrialSpec, go_on: Callable[[EpochReport], bool]) -> TrialResult | AttemptLost:
        """Train, evaluate and record one attempt; `go_on` takes each epoch's report and answers it.

        An error is a result too: it ends the trial as failed, with its traceback, and not the worker. A store that
        fails is not the trial's fault: the attempt is lost, and tried again. The tags of a result have its environment.
        """
        reached = 0

        def report(epoch: Epoch) -> bool:
            nonlocal reached
            reached = epoch.epoch
            return go_on(EpochReport(**vars(epoch), number=spec.number, attempt=spec.attempt))

        try:
            result = self._train(spec, report)
        except _StoreFailedError as error:
            return AttemptLost(*spec.key, str(error), by_store=True)
        except UnusableCheckpointError as error:
            return AttemptLost(*spec.key, str(error), by_checkpoint=True)
        except Exception as error:
            out_of_memory = isinstance(error, MemoryError | tf.errors.ResourceExhaustedError)
            reason = FailReason.OOM if out_of_memory else FailReason.ERROR
            told = truncated_traceback()
            result = TrialResult(*spec.key, TrialState.FAILED, reached, reason=reason, message=told)
        return replace(result, tags=result.tags | self._environment)

    def _train(self, spec: TrialSpec, report: Callable[[Epoch], bool]) -> TrialResult:
        keras.utils.clear_session()
        keras.utils.set_random_seed(spec.seeds[0][0])
        params = spec.hyperparameters
        # Everything is compared with the baseline, so that it is trained whatever its size.
        limit = None if spec.number == BASELINE_NUMBER else self._settings.max_parameters
        shape, classes, images = self._kind.image_shape, len(self._kind.class_names), len(self._train_images.labels)
        try:
            model = build_model(params, shape, classes, spec.precision, images=images, max_parameters=limit)
        except ModelTooLargeError as error:
            size, reason = {"parameter_count": float(error.parameters)}, FailReason.INFEASIBLE
            end = *spec.key, TrialState.FAILED, spec.resumes
            return TrialResult(*end, reason=reason, message=str(error), metrics=size)
        start, tags = self._start(spec, model)

        def on_epoch(epoch: Epoch) -> bool:
            return epoch.epoch <= spec.inherited or report(epoch)

        # The coordinator may not have seen the last epoch of an attempt that was killed, nor have answered it.
        if start is not None and spec.resumes and not on_epoch(start.epochs[-1]):
            outcome = FitOutcome(TrialState.PRUNED, start.epochs, start.best_epoch)
        else:
            splits, save_it = (self._train_images, self._validation), partial(self._save, spec)
            outcome = fit(model, *splits, params, spec.seed, on_epoch, save_it, start, spec.seeds)
        result = self._end(spec, outcome, model)
        return replace(result, tags=result.tags | tags)

    def _start(self, spec: TrialSpec, model: keras.Model) -> tuple[Checkpoint | None, dict[str, str]]:
        """Restore a model to the checkpoint from which an attempt goes on, if it does; tags say what is to be known.

        Where an earlier trial's checkpoint is gone, the epochs of that trial are trained again, with its seed.

        Raises:
            UnusableCheckpointError: the attempt's own checkpoint is torn, of another training or of other libraries.
        """
        tags = {} if spec.continues is None else {CONTINUED: str(spec.continues.epochs)}
        if spec.resumes:
            if self._checkpoints is None:
                raise UnusableCheckpointError("this machine does not have the folder of the checkpoints")
            identity = self._checkpoints.identity(spec)
            checkpoint, changed = self._restore(self._checkpoints.path(spec.label), identity, model)
            return checkpoint, tags | ({ENVIRONMENT_CHANGED: changed} if changed else {})
        if (earlier := spec.continues) is None or self._checkpoints is None:
            return None, tags
        params = spec.hyperparameters.model_copy(update={"epochs": earlier.epochs})
        origin = replace(spec, number=earlier.number, hyperparameters=params, run_id=earlier.run_id or "")
        identity = self._checkpoints.identity(replace(origin, seed=earlier.seeds[-1][0]))
        try:
            return self._restore(self._checkpoints.path(origin.label), identity, model)[0], tags
        except UnusableCheckpointError as error:
            return None, tags | {CONTINUATION_LOST: f"trial {earlier.number:03d}: {error}"}

    def _restore(self, path: Path, identity: Mapping[str, object], model: keras.Model) -> tuple[Checkpoint, str]:
        """Return the checkpoint to which the model was restored, and what differs here besides libraries."""
        header, checkpoint = load(path)
        if header.identity != identity:
            raise UnusableCheckpointError(f"the checkpoint {path} is of another training")
        before, here = header.environment, self._environment
        differing = {key: f"{key} {before.get(key)}, here {here[key]}" for key in here if before.get(key) != here[key]}
        if foreign := [text for key, text in differing.items() if key not in MACHINE]:
            raise UnusableCheckpointError(f"the checkpoint {path} was written with {'; '.join(foreign)}")
        checkpoint.restore(model)
        return checkpoint, f"after epoch {checkpoint.epoch}: {'; '.join(differing.values())}" if differing else ""

    def _save(self, spec: TrialSpec, checkpoint: Checkpoint) -> None:
        if self._checkpoints is not None and self._settings.records:
            path, identity = self._checkpoints.path(spec.label), self._checkpoints.identity(spec)
            with _as_store_error():
                save(path, checkpoint, identity, self._environment)

    def _end(self, spec: TrialSpec, outcome: FitOutcome, model: keras.Model) -> TrialResult:
        epochs = outcome.epochs[spec.inherited :]
        last = outcome.epochs[-1]
        seconds = sum(epoch.seconds for epoch in epochs)
        metrics = {"parameter_count": model.count_params(), "train_seconds": seconds}
        if outcome.state is TrialState.FAILED:
            told = f"The loss became {last.train_loss} in epoch {last.epoch} (validation: {last.val_loss})."
            failed, reason = TrialState.FAILED, FailReason.DIVERGED
            return TrialResult(*spec.key, failed, last.epoch - 1, reason=reason, message=told, metrics=metrics)
        if outcome.state is TrialState.PRUNED:
            tags = _weights_digest(model)
            return TrialResult(*spec.key, TrialState.PRUNED, last.epoch, metrics=metrics, tags=tags)
        # What is measured from here on is the float32 model that is logged, whatever precision trained it.
        network, views = to_float32(model, spec.hyperparameters), spec.hyperparameters.views
        objective = evaluation = None
        if self._validation is not None:
            evaluation = evaluate(with_views(network, views), self._validation, self._kind.class_names)
            # Views need no training: every trial shows what they do.
            others = {each: with_views(network, each) for each in get_args(Views) if each != views}
            accuracies = {each: accuracy(model, self._validation) for each, model in others.items()}
            metrics |= {f"val_accuracy_views_{views}": evaluation.accuracy}
            metrics |= {f"val_accuracy_views_{each}": found for each, found in accuracies.items()}
            objective = evaluation.accuracy
            metrics |= final_metrics(evaluation) | {
                "best_epoch": outcome.best_epoch,
                "best_val_accuracy": outcome.epochs[outcome.best_epoch - 1].val_accuracy,
                "last_val_accuracy": last.val_accuracy,
                "last_val_loss": last.val_loss,
            }
        tags = self._log(spec, evaluation, with_views(network, views)) | _weights_digest(network)
        return TrialResult(*spec.key, TrialState.COMPLETE, last.epoch, objective, metrics=metrics, tags=tags)

    def _log(self, spec: TrialSpec, evaluation: Evaluation | None, model: keras.Model) -> dict[str, str]:
        """Log figures, tables and the model; return the tags with the model's address and the digests."""
        if not self._settings.records:
            return {}
        with _as_store_error():
            tags = {}
            if evaluation is not None and self._validation is not None:
                sums = record_evaluation(self._client, spec.run_id, evaluation, self._validation, spec.seed)
                tags["evidence_sha256"] = sums
            logged = record_model(self._client, spec.run_id, model, spec.hyperparameters)
        return tags | {"model_uri": logged.uri, "model_sha256": logged.sha256}


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a process that trains on `threads` threads, as tags of a run.

    It decides a training's last bits besides parameters, seed and images.
    """
    cpu, instruction_sets = _processor()
    gpus = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {"device_name": "CPU"}
    return {
        "threads": str(threads),
        "cpu": cpu,
        "instruction_sets": instruction_sets,
        "device": str(details.get("device_name", "GPU")),
        "onednn": os.environ.get(ONEDNN, "TensorFlow's default"),
        "library_variables": left_to_the_user(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def _processor() -> tuple[str, str]:
    """Return the model of the processor, and those of its instruction sets that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # Linux only.
        return platform.processor() or platform.machine(), "unknown"
    attrs = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = attrs.get("flags", attrs.get("Features", "")).split()
    return attrs.get("model name", platform.machine()), " ".join(sorted(filter(INSTRUCTION_SETS.fullmatch, flags)))


class _StoreFailedError(Exception):
    """An error of the store while a worker logs."""


@contextmanager
def _as_store_error() -> Iterator[None]:
    """Turn an error of the store (a full disk, a lock, a server that is gone) into one that is not the trial's."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        line = next(iter(str(error).splitlines()), "")
        raise _StoreFailedError(f"the store failed: {type(error).__name__}: {line}"[:CAUSE_LENGTH]) from error


def _weights_digest(model: keras.Model) -> dict[str, str]:
    """Return the digest of the weights: `.keras` files with the same weights differ in the times of their members."""
    digest = hashlib.sha256()
    for weights in model.get_weights():
        digest.update(str(weights.shape).encode() + weights.tobytes())
    return {"weights_sha256": digest.hexdigest()}


@lru_cache(maxsize=1)
def _images(source: DataSource, limit_train: int | None, *, pool: bool) -> tuple[Split, Split | None]:
    """Return the images to train on and those for validation; of the whole pool there are none for validation."""
    if pool:
        return load_pool(source), None
    data = load_dataset(source, limit_train)
    return data.train, data.validation
