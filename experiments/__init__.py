"""Entry points, one module each: `python -m experiments.NAME`."""

import os
import signal
import sys
from contextlib import suppress
from traceback import walk_stack
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def expect_signals() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt from now on, for a command that cleans up after them."""
    for number in ENDING:
        if signal.getsignal(number) is _stop_at_once:
            signal.signal(number, _interrupt)


def _stop_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    with suppress(OSError):  # Where nobody can read it.
        os.write(2, b"Stopped at once.\n")
    os._exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Raise KeyboardInterrupt; during an import, where some libraries swallow it, stop at once."""
    if any(each.f_code.co_filename.startswith("<frozen importlib") for each, _ in walk_stack(frame)):
        _stop_at_once(number, frame)
    from fashion_study.signals import Terminated

    # The shell sends SIGHUP and then the kernel, systemd right behind SIGTERM: it would interrupt the cleaning up.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


# From the first line on: while a command imports what it needs, Ctrl-C would end in a traceback of some library. `-m`
# is in `sys.argv` while Python looks for the module. A program that imports an entry point keeps its own handlers. What
# is ignored stays ignored: Ctrl-C by a command in the background of a script, SIGHUP behind nohup.
if sys.argv[:1] == ["-m"]:
    for each in ENDING:
        if signal.getsignal(each) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(each, _stop_at_once)
