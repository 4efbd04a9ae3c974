"""A toy objective in the place of training, what can become of an attempt at it, and a worker that trains it."""

import math
import sys
from collections.abc import Callable, Generator
from dataclasses import replace
from enum import StrEnum
from types import ModuleType
from typing import cast

from fashion_study.trial import (
    AttemptLost,
    EpochReport,
    FailReason,
    Hyperparameters,
    PointCost,
    Precision,
    ProbeOrder,
    ProbeResult,
    TrialResult,
    TrialSpec,
    TrialState,
    WorkerSettings,
)

Key = tuple[int, int]
PROBED = ProbeResult(Precision.FLOAT32, {"float32": 7_500.0, "bfloat16": 700.0})
COST = PointCost(93_322, 1.0, 1 / 7_500)


class SimulatedOutcome(StrEnum):
    """The end of an attempt after its first epoch; an attempt without one trains to its last epoch."""

    LOST = "lost"
    ERROR = "error"
    DIVERGED = "diverged"
    TIMEOUT = "timeout"
    OOM = "oom"
    STUCK = "stuck"


def probed(order: ProbeOrder) -> ProbeResult:
    """Return invented measurements: each point costs the same."""
    return replace(PROBED, precision=order.precision or PROBED.precision, costs=(COST,) * len(order.points))


def toy_accuracy(params: Hyperparameters, epoch: int) -> float:
    """Return an accuracy that rises with each epoch towards a height (below 1) set by the learning rate and filters."""
    height = 0.95 - 0.02 * (math.log10(params.learning_rate) + 3) ** 2 - 0.001 * abs(params.filters_1 - 32)
    return max(0.0, height) * (1 - 0.5**epoch)


def toy_report(spec: TrialSpec, epoch: int) -> EpochReport:
    """Return the report of an epoch of toy training."""
    accuracy = toy_accuracy(spec.hyperparameters, epoch)
    return EpochReport(epoch, 1 - accuracy, accuracy, 1.1 - accuracy, accuracy, 0.5, 1000.0, *spec.key)


def toy_result(spec: TrialSpec, state: TrialState, epochs: int, reason: FailReason | None = None) -> TrialResult:
    """Return the result of toy training that ended after `epochs`."""
    objective = toy_accuracy(spec.hyperparameters, epochs) if state is TrialState.COMPLETE else None
    return TrialResult(*spec.key, state, epochs, objective, reason, "toy" if reason else "")


def toy_training(
    spec: TrialSpec, outcome: SimulatedOutcome | None
) -> Generator[EpochReport, bool | None, TrialResult | SimulatedOutcome]:
    """Yield the report of each epoch, receive whether to prune, and return the result, or LOST or STUCK as they are."""
    # The epoch after which it was stopped is reported again.
    done = max(spec.inherited, spec.resumes - 1)
    for epoch in range(done + 1, spec.hyperparameters.epochs + 1):
        if (yield toy_report(spec, epoch)):
            return toy_result(spec, TrialState.PRUNED, epoch)
        match outcome:
            case SimulatedOutcome.LOST | SimulatedOutcome.STUCK:
                return outcome
            case SimulatedOutcome.ERROR | SimulatedOutcome.DIVERGED | SimulatedOutcome.TIMEOUT | SimulatedOutcome.OOM:
                return toy_result(spec, TrialState.FAILED, epoch, FailReason(outcome.value))
    return toy_result(spec, TrialState.COMPLETE, spec.hyperparameters.epochs)


class ToyTrainer:
    """In-memory twin of a worker's trainer: no TensorFlow and no data."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings

    @staticmethod
    def prepare(settings: WorkerSettings) -> None:
        """Read nothing."""

    def probe(self, order: ProbeOrder) -> ProbeResult:
        """Return invented measurements."""
        return probed(order)

    def train(self, spec: TrialSpec, go_on: Callable[[EpochReport], bool]) -> TrialResult | AttemptLost:
        """Train the toy objective until its last epoch, or until `go_on` says no."""
        training = toy_training(spec, None)
        prune = None
        while True:
            try:
                prune = not go_on(training.send(prune))
            except StopIteration as end:
                return cast(TrialResult, end.value)


def work_with(trainer: type[ToyTrainer]) -> None:
    """Run this process as a worker with another trainer."""
    from fashion_study.worker import process

    module = ModuleType("fashion_study.worker.trainer")
    module.Trainer = trainer  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    process.main()
