"""What a worker's time goes into, measured where it passes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fashion_study.trial import TimeSpent, TrialSpec


class Timesheet:
    """Keep a worker's time from one order to the next.

    The wait for an order belongs to that order. It does not count before a worker's first one, since the study still
    starts up, nor between the last trial and the first repeat of a finalist, when no trial is left and others train.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._ended = clock()
        self._last: TrialSpec | None = None
        self._begun = self._before = self._answers = 0.0

    def begin(self, spec: TrialSpec) -> None:
        """Take note that an order has come."""
        self._begun, last = self._clock(), self._last
        follows = last is not None and (last.repeat > 0) == (spec.repeat > 0)
        self._before = self._begun - self._ended if follows else 0.0
        self._last, self._answers = spec, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as a wait for the coordinator."""
        started = self._clock()
        yield
        self._answers += self._clock() - started

    def end(self, writing: float) -> TimeSpent:
        """Take note that the order is done; `writing` seconds of it went into the store."""
        self._ended = self._clock()
        training = self._ended - self._begun - self._answers - writing
        return TimeSpent(training, self._before + self._answers, writing)
