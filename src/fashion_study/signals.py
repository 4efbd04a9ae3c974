"""Ctrl-C and SIGTERM: the first one ends a study cleanly, the second one at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self


class Terminated(KeyboardInterrupt):
    """The end of a process by SIGTERM, told from one by Ctrl-C."""


class StopSignals:
    """Signal handlers that note the first SIGINT or SIGTERM and raise KeyboardInterrupt on the second.

    Outside the main thread (a notebook server's, say) signals cannot be handled, and nothing is changed.
    """

    HANDLED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say
        self._has_said = False
        self.received: signal.Signals | None = None
        self._second: signal.Signals | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in self.HANDLED}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        # A library can replace our exception by a KeyboardInterrupt of its own, as Ray does.
        if isinstance(error, KeyboardInterrupt) and self._second is signal.SIGTERM:
            raise Terminated from error

    def is_stop_requested(self) -> bool:
        """Return whether a signal has come; the first call that finds one tells the user what happens now.

        The handler itself prints nothing: it can interrupt a write, and Python's streams are not reentrant.
        """
        if self.received is not None and not self._has_said:
            self._has_said = True
            self._say("stopping: unfinished trials go back to waiting; Ctrl-C again ends at once")
        return self.received is not None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            self._second = signal.Signals(number)
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.received = signal.Signals(number)
