"""The parent watchdog: `python -m fashion_study.mlflow_ui.watchdog COMMAND...`, a command that ends with its parent.

Standard input is a pipe whose other end only the parent holds. However the parent ends, by SIGKILL too, the kernel
closes the pipe, and the watchdog ends the command with everything in its process group.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

TERM_SECONDS = 5.0


def main() -> int:
    """Run the command until it ends by itself, or until standard input does; return its exit code."""
    # The parent's Ctrl-C arrives here as the end of the pipe.
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, process_group=0)
    threading.Thread(target=_end_with_parent, args=(child,), daemon=True).start()
    code = child.wait()
    _signal(child, signal.SIGKILL)  # Processes that it may have left.
    return code


def _end_with_parent(child: "subprocess.Popen[bytes]") -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    _signal(child, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(TERM_SECONDS)
    _signal(child, signal.SIGKILL)


def _signal(child: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    sys.exit(main())
