"""In-memory twins of the seams, so that the loop is tested without MLflow, processes and TensorFlow."""

import math
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fashion_study.executors.executor import AttemptLost, Event
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


class Fate(StrEnum):
    """Say what becomes of an attempt after its first epoch; without a fate it goes on to its end."""

    LOST = "lost"
    ERROR = "error"
    DIVERGED = "diverged"
    STUCK = "stuck"


def toy_accuracy(params: Hyperparameters, epoch: int) -> float:
    """Rise with each epoch towards a height (below 1) that the learning rate and the filters decide."""
    height = 0.95 - 0.02 * (math.log10(params.learning_rate) + 3) ** 2 - 0.001 * abs(params.filters_1 - 32)
    return max(0.0, height) * (1 - 0.5**epoch)


def toy_report(spec: TrialSpec, epoch: int) -> EpochReport:
    """Report the toy objective after `epoch`."""
    accuracy = toy_accuracy(spec.hyperparameters, epoch)
    return EpochReport(*spec.key, epoch, 1 - accuracy, accuracy, 1.1 - accuracy, accuracy, 0.5, 1000.0)


def toy_result(spec: TrialSpec, state: TrialState, epochs: int, reason: FailReason | None = None) -> TrialResult:
    """End an attempt after `epochs`."""
    if state is not TrialState.COMPLETE:
        return TrialResult(*spec.key, state, epochs, reason=reason, message="toy" if reason else "")
    return TrialResult(*spec.key, state, epochs, objective=toy_accuracy(spec.hyperparameters, epochs))


def toy_training(spec: TrialSpec, fate: Fate | None) -> Generator[EpochReport, bool, TrialResult | Fate]:
    """Yield a report for each epoch, take whether to prune, and return the result, or LOST or STUCK as they are."""
    for epoch in range(1, spec.hyperparameters.epochs + 1):
        if (yield toy_report(spec, epoch)):
            return toy_result(spec, TrialState.PRUNED, epoch)
        match fate:
            case Fate.LOST | Fate.STUCK:
                return fate
            case Fate.ERROR | Fate.DIVERGED:
                return toy_result(spec, TrialState.FAILED, epoch, FailReason(fate.value))
    return toy_result(spec, TrialState.COMPLETE, spec.hyperparameters.epochs)


@dataclass
class _Attempt:
    spec: TrialSpec
    training: Generator[EpochReport, bool, TrialResult | Fate]
    verdict: bool | None = None  # None as long as a report has no answer.


class MemoryExecutor:
    """Train the toy objective, one epoch of each running attempt per `wait`, and note what happens in `journal`."""

    def __init__(
        self, slots: int = 1, fates: Mapping[Key, Fate] | None = None, journal: list[str] | None = None
    ) -> None:
        self._slots = slots
        self._fates = fates or {}
        self._attempts: dict[Key, _Attempt] = {}
        self.journal = [] if journal is None else journal
        self.submitted: list[TrialSpec] = []
        self.extra: deque[Event] = deque()
        self.most_at_once = 0
        self.epochs = 0
        self.stopped = False

    @property
    def slots(self) -> int:
        """Return how many attempts can run at once."""
        return self._slots

    def probe_precision(self) -> ProbeResult:
        """Answer with figures that were never measured."""
        return PROBED

    def submit(self, spec: TrialSpec) -> None:
        """Begin an attempt; the caller has seen to it that a slot is free."""
        assert not self.stopped
        assert len(self._attempts) < self._slots
        training = toy_training(spec, self._fates.get(spec.key))
        self._attempts[spec.key] = _Attempt(spec, training)
        self.submitted.append(spec)
        self.most_at_once = max(self.most_at_once, len(self._attempts))
        self.journal.append(f"submit {spec.number}/{spec.attempt}")

    def wait(self, timeout: float) -> list[Event]:
        """Take every attempt that is not waiting for an answer one epoch further; first comes what is in `extra`."""
        del timeout  # Virtual steps take no time.
        events = list(self.extra)
        self.extra.clear()
        for attempt in list(self._attempts.values()):
            if attempt.verdict is not None or not attempt.spec.key in self._awaiting:
                events += self._step(attempt)
        return events

    def answer(self, report: EpochReport, *, prune: bool) -> None:
        """Answer an epoch's report; the attempt goes on, or ends there as pruned."""

    def stop(self) -> None:
        """Forget every attempt."""
        self._attempts.clear()
        self.stopped = True
