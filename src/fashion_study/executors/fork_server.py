"""The fork server, a process that has imported TensorFlow, and the workers that are forked from it."""

import atexit
import math
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from signal import SIGKILL
from typing import ClassVar, cast

from fashion_study.libraries import DECIDES_BITS
from fashion_study.trial import WorkerSettings

# A server that is alive answers at once: this one is stopped, or hangs.
ANSWER_SECONDS = 60.0
POLL_SECONDS = 0.01
# Out of memory, the kernel should end a worker before the coordinator or another process of the user's.
OOM_SCORE = "500"
# What libraries read once, when they are imported.
READ_AT_IMPORT = re.compile(rf"{DECIDES_BITS.pattern}|(?:ARROW|CUDA|JE|KERAS|LD|MALLOC|MLFLOW|TF)_|PYTHON")
# The pools of NumPy's and SciPy's linear algebra, Arrow's allocator, MLflow's telemetry: a fork has the thread that
# forks alone.
WITHOUT_THREADS = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def start(module: str, role: str, pipe: Connection, environment: dict[str, str], log: int) -> "subprocess.Popen[bytes]":
    """Start `module` as a worker or as a fork server, with its end of a pipe."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, role, str(pipe.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        pass_fds=[pipe.fileno()],
        process_group=0,  # Ctrl-C goes to the coordinator alone.
    )
    with suppress(OSError):  # Linux only. What is forked from a server inherits it.
        Path(f"/proc/{process.pid}/oom_score_adj").write_text(OOM_SCORE)
    return process


class ForkServer:
    """Process that forks the workers of one executor, and then of the next."""

    # The server that an executor has given back, by the process to which it belongs: a fork of that inherits this.
    _idle: ClassVar[dict[int, "ForkServer"]] = {}

    def __init__(self, module: str, environment: dict[str, str], log: int) -> None:
        self._made_for = _made_for(module, environment)
        self._connection, theirs = Pipe()
        with theirs:
            self._process = start(module, "fork", theirs, environment | WITHOUT_THREADS, log)

    @classmethod
    def borrow(cls, module: str, environment: dict[str, str], log: int) -> "ForkServer":
        """Return a server for workers of `module`: the idle one, where libraries would be imported in the same way."""
        if server := cls._idle.pop(os.getpid(), None):
            if server.is_alive and server._made_for == _made_for(module, environment):
                return server
            server.close()
        return cls(module, environment, log)

    def give_back(self) -> None:
        """Keep the server for the next executor of this process."""
        self.close_idle()
        self._idle[os.getpid()] = self

    @classmethod
    def close_idle(cls) -> None:
        """End the server that no executor uses, if there is one."""
        if server := cls._idle.pop(os.getpid(), None):
            server.close()

    @property
    def is_alive(self) -> bool:
        """Return whether workers can be forked."""
        return self._process.poll() is None

    def fork(
        self, pipe: Connection, environment: dict[str, str], settings: WorkerSettings, log: int
    ) -> "ForkedProcess":
        """Let the server fork a worker as soon as it can; of one that has died, the pipe is closed."""
        folder = os.open(".", os.O_RDONLY)
        with suppress(OSError):
            self._connection.send((environment, settings))
            for handle in (pipe.fileno(), log, folder):
                send_handle(self._connection, handle, self._process.pid)
        os.close(folder)
        return ForkedProcess(self)

    def exit_code(self, pid: int) -> int | None:
        """Return the exit code of a worker, None while it runs; the workers of a server that is dead end with it."""
        if self.is_alive:
            with suppress(EOFError, OSError):
                self._connection.send(pid)
                if self._connection.poll(ANSWER_SECONDS):
                    return cast("int | None", self._connection.recv())
        return self.close()

    def close(self) -> int:
        """End the server, and with it its workers; return its exit code."""
        self._connection.close()
        self._process.kill()
        return self._process.wait()


atexit.register(ForkServer.close_idle)


class ForkedProcess:
    """Worker forked from a server, with the part of `subprocess.Popen` that an executor uses.

    Its `pid` is None until the worker has told it. Before that it can only be ended with its server.
    """

    def __init__(self, server: ForkServer) -> None:
        self.server = server
        self.pid: int | None = None
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        if self.returncode is None and self.pid is not None:
            self.returncode = self.server.exit_code(self.pid)
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        """Wait for the end of the process.

        Raises:
            subprocess.TimeoutExpired: it has not ended within `timeout` seconds.
        """
        if self.pid is None:
            self.returncode = self.server.close()
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout)
            time.sleep(POLL_SECONDS)
        return code

    def kill(self) -> None:
        """Kill the process."""
        if self.pid is not None and self.poll() is None:
            os.kill(self.pid, SIGKILL)


def _made_for(module: str, environment: dict[str, str]) -> tuple[str, dict[str, str]]:
    return module, {name: value for name, value in environment.items() if READ_AT_IMPORT.match(name)}
