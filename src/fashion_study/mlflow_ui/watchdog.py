"""Run a command that ends with whoever started it: `python -m fashion_study.mlflow_ui.watchdog COMMAND...`.

The lifeline is standard input, a pipe of which nobody else holds the other end. However its owner ends, by SIGKILL too,
the kernel closes the pipe, and the command goes with everything that it has started in its process group.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

PATIENCE_SECONDS = 5.0


def main() -> int:
    """Run the command until it ends by itself, or until standard input does; return its exit code."""
    # Its owner's Ctrl-C comes here as the end of the pipe.
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, process_group=0)
    threading.Thread(target=_end_with_owner, args=(child,), daemon=True).start()
    code = child.wait()
    _signal(child, signal.SIGKILL)  # What it may have left behind.
    return code


def _end_with_owner(child: "subprocess.Popen[bytes]") -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    _signal(child, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(PATIENCE_SECONDS)
    _signal(child, signal.SIGKILL)


def _signal(child: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    sys.exit(main())
