"""One attempt at a trial, from its images to its result."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

import keras
import mlflow
import tensorflow as tf
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from fashion_study.data.catalog import describe, load_dataset, load_pool
from fashion_study.data.dataset import Split
from fashion_study.text import truncated_traceback
from fashion_study.training.evaluation import Evaluation, evaluate
from fashion_study.training.fit import FitOutcome, configure, fit, probe
from fashion_study.training.model import build_model, to_float32
from fashion_study.trial import (
    AttemptLost,
    Epoch,
    EpochReport,
    FailReason,
    ProbeResult,
    TrialResult,
    TrialSpec,
    TrialState,
    WorkerSettings,
)
from fashion_study.worker.checkpoint import WarmStart, restore
from fashion_study.worker.environment import environment
from fashion_study.worker.record import final_metrics, record_evaluation, record_model

# A line on the terminal, and a tag.
CAUSE_LENGTH = 300


class Trainer:
    """A worker's images and its client for the runs, which all its attempts share.

    Where its settings say that nothing is recorded, it trains and measures in the same way.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        configure(settings.threads)
        mlflow.set_tracking_uri(settings.tracking_uri)
        self._tracking_uri = settings.tracking_uri
        self._records = settings.records
        self._environment = environment(settings.threads)
        self._kind = describe(settings.source.name)
        self._validation: Split | None = None
        if settings.pool:
            self._train_images = load_pool(settings.source)
        else:
            data = load_dataset(settings.source, settings.limit_train)
            self._train_images, self._validation = data.train, data.validation

    @cached_property
    def _client(self) -> MlflowClient:
        # Opened with the first trial: by then the coordinator has made or migrated the database.
        return MlflowClient(self._tracking_uri)

    def probe(self) -> ProbeResult:
        """Measure which precision trains faster here."""
        return probe(self._kind.image_shape, len(self._kind.class_names))

    def train(self, spec: TrialSpec, go_on: Callable[[EpochReport], bool]) -> TrialResult | AttemptLost:
        """Train, evaluate and record one attempt; `go_on` takes each epoch's report and answers it.

        An error is a result too: it ends the trial as failed, with its traceback, and not the worker. A store that
        fails is not the trial's fault: the attempt is lost, and tried again. The tags of a result have its environment.
        """
        end = self._attempt(spec, go_on)
        return replace(end, tags=end.tags | self._environment) if isinstance(end, TrialResult) else end

    def _attempt(self, spec: TrialSpec, go_on: Callable[[EpochReport], bool]) -> TrialResult | AttemptLost:
        reached = 0

        def report(epoch: Epoch) -> bool:
            nonlocal reached
            reached = epoch.epoch
            return go_on(EpochReport(**vars(epoch), number=spec.number, attempt=spec.attempt))

        try:
            return self._train(spec, report)
        except _StoreFailedError as error:
            return AttemptLost(*spec.key, str(error), by_store=True)
        except (MemoryError, tf.errors.ResourceExhaustedError):
            return _failed(spec, reached, FailReason.OOM)
        except Exception:
            return _failed(spec, reached, FailReason.ERROR)

    def _train(self, spec: TrialSpec, report: Callable[[Epoch], bool]) -> TrialResult:
        keras.utils.clear_session()
        keras.utils.set_random_seed(spec.seed)
        params = spec.hyperparameters
        model = build_model(params, self._kind.image_shape, len(self._kind.class_names), spec.precision)
        start = self._start(spec, model)
        outcome = fit(model, self._train_images, self._validation, params, spec.seed, report, start.epochs)
        result = self._end(spec, outcome, model)
        return replace(result, tags=result.tags | start.tags)

    def _start(self, spec: TrialSpec, model: keras.Model) -> WarmStart:
        if spec.continues is None:
            return WarmStart()
        with _as_store_error():
            return restore(self._client, spec.continues, model, spec.hyperparameters, len(self._train_images.labels))

    def _end(self, spec: TrialSpec, outcome: FitOutcome, model: keras.Model) -> TrialResult:
        if outcome.state is TrialState.COMPLETE:
            return self._record(spec, outcome, to_float32(model, spec.hyperparameters))
        last, cost = outcome.epochs[-1], _cost(model, outcome)
        if outcome.state is TrialState.PRUNED:
            return TrialResult(*spec.key, TrialState.PRUNED, last.epoch, metrics=cost, tags=_weights_digest(model))
        return TrialResult(
            *spec.key,
            TrialState.FAILED,
            epochs_run=last.epoch - 1,
            reason=FailReason.DIVERGED,
            metrics=cost,
            message=f"The loss became {last.train_loss} in epoch {last.epoch} (validation: {last.val_loss}).",
        )

    def _record(self, spec: TrialSpec, outcome: FitOutcome, model: keras.Model) -> TrialResult:
        # What is measured from here on is the float32 model that is logged, whatever precision trained it.
        objective, metrics, evaluation = None, _cost(model, outcome), None
        if self._validation is not None:
            evaluation = evaluate(model, self._validation, self._kind.class_names)
            objective = evaluation.accuracy
            best = max(epoch.val_accuracy for epoch in outcome.epochs)
            metrics |= final_metrics(evaluation) | {"best_val_accuracy": best}
        return TrialResult(
            *spec.key,
            TrialState.COMPLETE,
            epochs_run=outcome.epochs[-1].epoch,
            objective=objective,
            metrics=metrics,
            tags=self._log(spec, evaluation, model) | _weights_digest(model),
        )

    def _log(self, spec: TrialSpec, evaluation: Evaluation | None, model: keras.Model) -> dict[str, str]:
        """Log figures, tables and the model; return the tags with the model's address and the digests."""
        if not self._records:
            return {}
        with _as_store_error():
            tags = {}
            if evaluation is not None and self._validation is not None:
                sums = record_evaluation(self._client, spec.run_id, evaluation, self._validation, spec.seed)
                tags["evidence_sha256"] = sums
            logged = record_model(self._client, spec.run_id, model, spec.hyperparameters)
        return tags | {"model_uri": logged.uri, "model_sha256": logged.sha256}


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


def _failed(spec: TrialSpec, epochs: int, reason: FailReason) -> TrialResult:
    return TrialResult(*spec.key, TrialState.FAILED, epochs, reason=reason, message=truncated_traceback())


def _cost(model: keras.Model, outcome: FitOutcome) -> dict[str, float]:
    return {"parameter_count": model.count_params(), "train_seconds": sum(epoch.seconds for epoch in outcome.epochs)}


def _weights_digest(model: keras.Model) -> dict[str, str]:
    """Return the digest of the weights: `.keras` files with the same weights differ in the times of their members."""
    digest = hashlib.sha256()
    for weights in model.get_weights():
        digest.update(str(weights.shape).encode() + weights.tobytes())
    return {"weights_sha256": digest.hexdigest()}
