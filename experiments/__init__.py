"""Entry points, one module each: `python -m experiments.NAME`."""

import os
import signal
import sys
from typing import NoReturn


def expect_ctrl_c() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, for a command that has begun its work and answers it itself."""
    if signal.getsignal(signal.SIGINT) is _stop_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop_at_once(_number: int, _frame: object) -> NoReturn:
    os.write(2, b"Stopped at once.\n")
    os._exit(130)


# From the first line on: while a command imports what it needs, Ctrl-C would end in some library's traceback.
# `-m` stands there while Python looks for the module. Who imports an entry point keeps what they have, and so does who
# starts one in the background, where Ctrl-C is ignored.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop_at_once)
