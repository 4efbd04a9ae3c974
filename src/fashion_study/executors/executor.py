"""The seam between the coordinator and the processes that train."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from fashion_study.trial import AttemptLost, EpochReport, ProbeResult, TrialResult, TrialSpec

Event = EpochReport | TrialResult | AttemptLost


def losses_last(events: list[Event]) -> list[Event]:
    """Put losses behind all else: one of them may end a study, and what came with it would have to be trained again."""
    return sorted(events, key=lambda event: isinstance(event, AttemptLost))


class Executor(Protocol):
    """Run attempts side by side."""

    @property
    def slots(self) -> int:
        """Return how many attempts can run at once; workers on other machines come and go, down to none."""
        ...

    def probe_precision(self, is_over: Callable[[], bool] = lambda: False) -> ProbeResult | None:
        """Measure which precision trains faster on this machine; return None if `is_over` says so before that is known.

        It may take long until a worker is there, on a cluster for ever.
        """
        ...

    def submit(self, spec: TrialSpec) -> None:
        """Begin an attempt; the caller has seen to it that a slot is free."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """Return what has happened, after at most `timeout` seconds; perhaps nothing.

        To be called again and again while something runs: it is here that limits of time and memory are watched.
        """
        ...

    def answer(self, report: EpochReport, *, prune: bool) -> None:
        """Answer an epoch's report; the worker goes on, or ends the trial there."""
        ...

    def stop(self) -> None:
        """End every worker, whatever it is doing."""
        ...


@contextmanager
def closing_workers(executor: Executor) -> Iterator[Executor]:
    """End every worker with the block, however it ends."""
    try:
        yield executor
    finally:
        executor.stop()
