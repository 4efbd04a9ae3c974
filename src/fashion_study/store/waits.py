"""Waiting for a server that is gone: MLflow's client asks it again for minutes, and says so to nobody."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from urllib3.util.retry import Retry

# The first repetition comes at once: it often finds that only an idle connection was closed.
TELLING = 2


class RetryNotifier(logging.Handler):
    """Count how often a server was waited for, and tell of each time when it begins."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Look at what urllib3 says before it asks again."""
        retry = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if isinstance(retry, Retry) and len(retry.history) == TELLING:
            self.count += 1
            self._tell(f"the MLflow server does not answer; it is asked again for {_seconds_left(retry):.0f} s")


@contextmanager
def watch_waits(tell: Callable[[str], None]) -> Iterator[RetryNotifier]:
    """Tell of every wait for a server while the block runs, in place of what urllib3 would print."""
    logger = logging.getLogger("urllib3.connectionpool")
    waits, propagate = RetryNotifier(tell), logger.propagate
    logger.addHandler(waits)
    logger.propagate = False
    try:
        yield waits
    finally:
        logger.removeHandler(waits)
        logger.propagate = propagate


def _seconds_left(retry: Retry) -> float:
    """Add up the pauses to come, the one that begins included."""
    repetitions = range(TELLING, TELLING + int(retry.total or 0) + 1)
    return float(sum(min(retry.backoff_max, retry.backoff_factor * 2 ** (each - 1)) for each in repetitions))
