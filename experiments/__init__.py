"""Entry points, one module each: `python -m experiments.NAME`."""

import os
import signal
import sys
from traceback import walk_stack
from types import FrameType
from typing import NoReturn


def expect_ctrl_c() -> None:
    """Let Ctrl-C raise KeyboardInterrupt from now on, for a command that has begun its work and cleans up after it."""
    if signal.getsignal(signal.SIGINT) is _stop_at_once:
        signal.signal(signal.SIGINT, _interrupt)


def _stop_at_once(_number: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, b"Stopped at once.\n")
    os._exit(130)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Raise KeyboardInterrupt; during an import, where some libraries swallow it, stop at once."""
    if any(each.f_code.co_filename.startswith("<frozen importlib") for each, _ in walk_stack(frame)):
        _stop_at_once(number, frame)
    raise KeyboardInterrupt


# From the first line on: while a command imports what it needs, Ctrl-C would end in a traceback of some library. `-m`
# is in `sys.argv` while Python looks for the module. A program that imports an entry point keeps its own handler, and a
# command in the background, where Ctrl-C is ignored, ignores it.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop_at_once)
