"""A toy objective in the place of training, and what can become of an attempt at it."""

import math
from collections.abc import Generator
from enum import StrEnum

from fashion_study.trial import (
    EpochReport,
    FailReason,
    Hyperparameters,
    Precision,
    ProbeResult,
    TrialResult,
    TrialSpec,
    TrialState,
)

Key = tuple[int, int]
PROBED = ProbeResult(Precision.FLOAT32, {"float32": 7_500.0, "bfloat16": 700.0})


class SimulatedOutcome(StrEnum):
    """The end of an attempt after its first epoch; an attempt without one trains to its last epoch."""

    LOST = "lost"
    ERROR = "error"
    DIVERGED = "diverged"
    TIMEOUT = "timeout"
    OOM = "oom"
    STUCK = "stuck"


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
    if state is not TrialState.COMPLETE:
        return TrialResult(*spec.key, state, epochs, reason=reason, message="toy" if reason else "")
    return TrialResult(*spec.key, state, epochs, objective=toy_accuracy(spec.hyperparameters, epochs))


def toy_training(
    spec: TrialSpec, outcome: SimulatedOutcome | None
) -> Generator[EpochReport, bool | None, TrialResult | SimulatedOutcome]:
    """Yield the report of each epoch, receive whether to prune, and return the result, or LOST or STUCK as they are."""
    done = 0 if spec.continues is None else spec.continues.epochs
    for epoch in range(done + 1, spec.hyperparameters.epochs + 1):
        if (yield toy_report(spec, epoch)):
            return toy_result(spec, TrialState.PRUNED, epoch)
        match outcome:
            case SimulatedOutcome.LOST | SimulatedOutcome.STUCK:
                return outcome
            case SimulatedOutcome.ERROR | SimulatedOutcome.DIVERGED | SimulatedOutcome.TIMEOUT | SimulatedOutcome.OOM:
                return toy_result(spec, TrialState.FAILED, epoch, FailReason(outcome.value))
    return toy_result(spec, TrialState.COMPLETE, spec.hyperparameters.epochs)
