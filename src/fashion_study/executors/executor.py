"""The interface between the coordinator and the processes that train."""

from collections.abc import Callable
from typing import Protocol

from fashion_study.trial import AttemptLost, EpochReport, ProbeOrder, ProbeResult, TrialResult, TrialSpec

Event = EpochReport | TrialResult | AttemptLost


class Executor(Protocol):
    """Workers that run attempts side by side."""

    @property
    def slots(self) -> int:
        """Return how many attempts can run at once; workers on other machines come and go, down to none."""
        ...

    def probe(self, order: ProbeOrder, is_over: Callable[[], bool] = lambda: False) -> ProbeResult | None:
        """Measure how fast a worker trains; return None if `is_over` says so before that is known.

        Before a worker is ready, this waits; on a cluster perhaps for ever.
        """
        ...

    def submit(self, spec: TrialSpec) -> None:
        """Begin an attempt; a slot has to be free."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """Return what has happened, after at most `timeout` seconds; perhaps nothing.

        Called repeatedly while anything runs: the limits of time and memory are checked here.
        """
        ...

    def answer(self, report: EpochReport, *, prune: bool) -> None:
        """Answer an epoch's report; the worker trains the next epoch, or ends the trial as pruned."""
        ...

    def close(self) -> None:
        """End every worker, whatever it is doing."""
        ...
