"""The executor that trains nothing: it answers from recorded curves, with a clock of its own."""

import heapq
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.curves import Curve, CurveTable
from fashion_study.executors.executor import Event
from fashion_study.space.space import Categorical, Parameter, SearchSpace
from fashion_study.testing.training import probed
from fashion_study.trial import (
    Epoch,
    EpochReport,
    FailReason,
    ParamValue,
    ProbeOrder,
    ProbeResult,
    TrialResult,
    TrialSpec,
    TrialState,
)


@dataclass(eq=False)
class _Attempt:
    spec: TrialSpec
    curve: Curve
    epoch: int = 0
    epochs: int = 0


class TableExecutor:
    """An executor that answers from recorded curves, an event at a time, in the order of a clock of its own."""

    def __init__(self, table: CurveTable, space: SearchSpace, slots: int, *, best_counts: bool = True) -> None:
        self._best_counts = best_counts
        self._curves = table.curves
        self._space = space
        self._slots = slots
        self._places = np.array([coordinates(space, curve.params) for curve in table.curves])
        self._is_used = np.zeros(len(table.curves), dtype=bool)
        self._attempts: dict[int, _Attempt] = {}
        self._queue: list[tuple[float, int, Event]] = []
        self._order = itertools.count()
        self.running = 0
        self.seconds = 0.0
        self.epochs = 0
        self.distances: list[float] = []

    @property
    def slots(self) -> int:
        """Return how many attempts can run at once."""
        return self._slots

    def probe(self, order: ProbeOrder, is_over: Callable[[], bool] = lambda: False) -> ProbeResult | None:
        """Name the precision of the table's curves; nothing is measured."""
        return None if is_over() else probed(order)

    def submit(self, spec: TrialSpec) -> None:
        """Begin an attempt on the nearest row that is not used yet."""
        if spec.resumes:
            self.running += 1
            attempt = self._attempts[spec.number]
            attempt.spec, attempt.epoch = spec, spec.resumes - 1
            self._train(attempt, again=True)
            return
        row, distance = self._nearest(spec.hyperparameters.model_dump())
        self._is_used[row] = True
        self.distances.append(distance)
        self._attempts[spec.number] = _Attempt(spec, self._curves[row])
        self.resume(spec.number, after=0, until=spec.hyperparameters.epochs)

    def resume(self, number: int, after: int, until: int) -> None:
        """Go on with a trial behind the epoch `after`, to the end of the epoch `until`."""
        self.running += 1
        attempt = self._attempts[number]
        attempt.epoch, attempt.epochs = after, until
        self._train(attempt)

    def wait(self, timeout: float) -> list[Event]:
        """Return the next event and set the clock to it; without time to wait, nothing."""
        if timeout <= 0 or not self._queue:
            return []
        self.seconds, _, event = heapq.heappop(self._queue)
        if isinstance(event, EpochReport):
            self.epochs += event.epoch > self._attempts[event.number].spec.resumes
        else:
            self.running -= 1
        return [event]

    def answer(self, report: EpochReport, *, prune: bool) -> None:
        """Go on with a trial, or end it here: pruned, or complete after its last epoch."""
        attempt = self._attempts[report.number]
        if prune:
            self._end(attempt, TrialState.PRUNED)
        elif report.epoch == attempt.epochs:
            best = max(attempt.curve.accuracy[: report.epoch]) if self._best_counts else report.val_accuracy
            self._end(attempt, TrialState.COMPLETE, best)
        else:
            self._train(attempt)

    def close(self) -> None:
        """Forget what runs."""
        self._queue.clear()

    def _nearest(self, params: Mapping[str, ParamValue]) -> tuple[int, float]:
        distances = np.linalg.norm(self._places - coordinates(self._space, params), axis=1)
        distances[self._is_used] = math.inf
        row = int(distances.argmin())
        return row, float(distances[row])

    def curve(self, number: int) -> list[Epoch]:
        """Return the epochs of a trial's row that it has trained."""
        attempt = self._attempts[number]
        # The epoch in which a row has diverged has no figures.
        return [_epoch(attempt.curve, done) for done in range(min(attempt.epoch, len(attempt.curve.accuracy)))]

    def _train(self, attempt: _Attempt, *, again: bool = False) -> None:
        curve, done = attempt.curve, attempt.epoch
        attempt.epoch += 1
        end = self.seconds + (0.0 if again else curve.seconds[done])
        if done == len(curve.accuracy):
            failed = TrialResult(*attempt.spec.key, TrialState.FAILED, done, reason=FailReason.DIVERGED)
            self._push(end, failed)
            return
        number, attempt_number = attempt.spec.key
        self._push(end, EpochReport(**vars(_epoch(curve, done)), number=number, attempt=attempt_number))

    def _end(self, attempt: _Attempt, state: TrialState, objective: float | None = None) -> None:
        self._push(self.seconds, TrialResult(*attempt.spec.key, state, attempt.epoch, objective=objective))

    def _push(self, seconds: float, event: Event) -> None:
        heapq.heappush(self._queue, (seconds, next(self._order), event))


def _epoch(curve: Curve, done: int) -> Epoch:
    accuracy, loss, seconds = curve.accuracy[done], curve.loss[done], curve.seconds[done]
    return Epoch(done + 1, math.nan, math.nan, loss, accuracy, seconds, math.nan)


def coordinates(space: SearchSpace, params: Mapping[str, ParamValue]) -> NDArray[np.float64]:
    """Place a point in the unit cube: a range from 0 to 1, by its logarithm where it is one; two choices 1 apart.

    The number of epochs has no axis: every row holds all of them.
    """
    axes = [_axis(parameter, params[name]) for name, parameter in space.parameters.items() if name != "epochs"]
    return np.concatenate(axes)


def _axis(parameter: Parameter, value: ParamValue) -> NDArray[np.float64]:
    if isinstance(parameter, Categorical):
        return np.array([choice == value for choice in parameter.choices]) / math.sqrt(2)
    scale = math.log if parameter.log else float
    low, high = scale(parameter.low), scale(parameter.high)
    return np.array([(scale(float(value)) - low) / (high - low) if high > low else 0.0])
