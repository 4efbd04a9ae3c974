"""Processes that tests look for and ask; any of them may end meanwhile."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psutil

Answer = TypeVar("Answer")
Other = TypeVar("Other")


@contextmanager
def started_process(command: Sequence[str | Path], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Start a process and wait for its end with the block's; if the block fails, kill it with all that it started."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
        process.__exit__(None, None, None)  # It waits, and a test's timeout ends that.
    except BaseException:
        with process:
            if process.poll() is None:
                for each in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
                    unless_gone(each.kill, None)
        raise


class ProcessList:
    """The command lines of every process of this machine while the block runs."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "ProcessList":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_done.set()
        self._thread.join()

    def _watch(self) -> None:
        is_done = False
        while not is_done:
            is_done = self._is_done.wait(0.2)
            self.seen |= {" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"])}


def unless_gone(ask: Callable[[], Answer], otherwise: Other) -> Answer | Other:
    """Return a process's answer, or `otherwise` where it has ended and has none any more."""
    try:
        return ask()
    except psutil.NoSuchProcess:
        return otherwise


def has_ended(process: psutil.Process) -> bool:
    """Say whether a process has ended and has closed all its files, be its end noted by its parent or not."""
    # A zombie's other threads may still hold its files.
    is_dead = unless_gone(process.status, psutil.STATUS_ZOMBIE) == psutil.STATUS_ZOMBIE
    return is_dead and unless_gone(process.num_threads, 1) == 1


def workers_running(module: str, pid: int | None) -> list[psutil.Process]:
    """Find the living workers below `pid` of a module: those that it has started, and those of its fork servers."""
    below = {each.pid: each for each in psutil.Process(pid).children(recursive=True)}
    commands = {number: unless_gone(partial(_command_of, each), []) for number, each in below.items()}
    forking = {number for number, command in commands.items() if command[-3:-1] == [module, "fork"]}
    parents = {number: unless_gone(below[number].ppid, 0) for number in forking}
    servers = {number for number in forking if parents[number] not in forking}
    return [below[number] for number, command in commands.items() if module in command and number not in servers]


def _command_of(process: psutil.Process) -> list[str]:
    # What starts a process goes on before the kernel has noted its command line, which is empty until then.
    while not (command := process.cmdline()):
        time.sleep(0.001)
    return list(command)
