"""Ctrl-C, SIGTERM and SIGHUP: the first one ends a study cleanly, a second Ctrl-C or SIGTERM at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

from fashion_study.errors import ExitCode


class Terminated(KeyboardInterrupt):
    """The end of a process by SIGTERM, or by SIGHUP when its terminal was closed, told from one by Ctrl-C."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.exit_code = ExitCode(128 + number)


def exit_code_of(stop: KeyboardInterrupt) -> ExitCode:
    """Return the exit code of a command that a signal has ended."""
    return stop.exit_code if isinstance(stop, Terminated) else ExitCode.INTERRUPTED


class StopSignals:
    """Signal handlers that note the first SIGINT, SIGTERM or SIGHUP, and raise KeyboardInterrupt on the second.

    SIGHUP is never the second: a terminal that closes sends it twice (the shell, then the kernel), and systemd right
    behind SIGTERM. Where it is ignored, as behind nohup, it stays so. Outside the main thread (a notebook server's,
    say) signals cannot be handled, and nothing is changed.
    """

    HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say
        self._has_said = False
        self.received: signal.Signals | None = None
        self._second: signal.Signals | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            is_detached = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            handled = self.HANDLED[:-1] if is_detached else self.HANDLED
            self._previous = {number: signal.signal(number, self._note) for number in handled}
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
        if self.received is None:
            self.received = signal.Signals(number)
        elif number != signal.SIGHUP:
            self._second = signal.Signals(number)
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
