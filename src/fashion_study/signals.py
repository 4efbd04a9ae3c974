"""Ctrl-C and SIGTERM: once means "end cleanly", twice means "at once"."""

import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Self

# Whoever is told may not listen, as where a pipe is full; a second signal ends the study all the same.
PATIENCE_SECONDS = 1.0


class Terminated(KeyboardInterrupt):
    """Say that it was SIGTERM, not Ctrl-C, that ends the process at once."""


class StopSignals:
    """Note the first signal for the coordinator to see and `say` so; raise KeyboardInterrupt on the second.

    Outside the main thread (a notebook server's, say) signals cannot be handled, and nothing is changed.
    """

    HANDLED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        # The handler says nothing itself: it may have come in the middle of what the main thread writes, and Python's
        # streams cannot be entered a second time.
        self._speaker = threading.Thread(target=self._speak, name="interrupts", daemon=True)
        self.received: signal.Signals | None = None
        self._second: signal.Signals | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._speaker.start()
            self._previous = {number: signal.signal(number, self._note) for number in self.HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._speaker.is_alive():
            self._lines.put(None)
            self._speaker.join(PATIENCE_SECONDS)
        # Whose call the signal has interrupted may have put an exception of its own in the place of ours, as Ray does.
        if isinstance(error, KeyboardInterrupt) and self._second is signal.SIGTERM:
            raise Terminated from error

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            self._second = signal.Signals(number)
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.received = signal.Signals(number)
        self._lines.put("stopping: unfinished trials go back to waiting; Ctrl-C again ends at once")

    def _speak(self) -> None:
        while (line := self._lines.get()) is not None:
            self._say(line)
