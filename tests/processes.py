"""Processes that tests look for."""

import time
from contextlib import suppress

import psutil


def descendants_running(module: str, pid: int | None) -> list[psutil.Process]:
    """Find the living processes below `pid` that were started as `python -m module`."""
    return [process for process in psutil.Process(pid).children(recursive=True) if module in _command_of(process)]


def _command_of(process: psutil.Process) -> list[str]:
    with suppress(psutil.NoSuchProcess):  # Or a zombie, which psutil counts as none.
        # Whoever starts a process goes on before the kernel has noted its command line, which is empty until then.
        while not (command := process.cmdline()):
            time.sleep(0.001)
        return command
    return []
