"""The worker process, which trains one attempt at a time, and the fork server, from which workers are forked.

Started as `python -m fashion_study.worker.process work FD` or `... fork FD`, where FD is the process's end of a duplex
pipe to the coordinator, which it inherits. A fork server has imported what a worker needs: TensorFlow takes seconds.
"""

import ctypes
import gc
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from queue import SimpleQueue
from typing import Any, NoReturn

from fashion_study.errors import StudyError
from fashion_study.text import truncated_traceback
from fashion_study.trial import (
    EpochReport,
    ProbeOrder,
    TrialSpec,
    WorkerFailed,
    WorkerReady,
    WorkerSettings,
    WorkerStarted,
)

PR_SET_PDEATHSIG = 1  # From <sys/prctl.h>.


def main() -> None:
    """Do what the command line says, until the coordinator's end of the pipe closes."""
    role, fd = sys.argv[1:]
    _end_with_the_parent()
    connection = Connection(int(fd))
    work(connection) if role == "work" else serve(connection)


def work(connection: Connection) -> NoReturn:
    """Load libraries and data once, then train what the coordinator sends."""
    settings: WorkerSettings = connection.recv()
    inbox: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    try:
        # Imported when the listener already watches for the coordinator.
        _import_trainer()
        from fashion_study.worker.trainer import Trainer

        trainer = Trainer(settings)
    except Exception as error:
        told = StudyError(f"A worker could not begin its work:\n{truncated_traceback()}")
        connection.send(WorkerFailed(error if isinstance(error, StudyError) else told))
        raise
    connection.send(WorkerReady())

    def ask_whether_to_go_on(report: EpochReport) -> bool:
        connection.send(report)
        return not inbox.get()  # The answer is whether to prune the trial.

    while True:
        match inbox.get():
            case ProbeOrder() as order:
                connection.send(trainer.probe(order))
            case TrialSpec() as spec:
                connection.send(trainer.train(spec, ask_whether_to_go_on))


def serve(connection: Connection) -> None:
    """Fork a worker for each request: environment, settings, pipe, log and folder; tell exit codes by pid.

    The images that a worker will need are read before it is forked. This process has no thread and runs no operation
    of TensorFlow's: neither outlives a fork.
    """
    _import_trainer()
    from fashion_study.worker.trainer import Trainer

    with suppress(EOFError):
        while True:
            match connection.recv():
                case dict() as environment, WorkerSettings() as settings:
                    with suppress(Exception):  # The worker meets it too, and says it.
                        Trainer.prepare(settings)
                    _fork(connection, environment)
                case int() as pid:
                    _, status = ended = os.waitpid(pid, os.WNOHANG)
                    connection.send(os.waitstatus_to_exitcode(status) if any(ended) else None)


def _fork(server: Connection, environment: dict[str, str]) -> None:
    pipe, log, folder = handles = [recv_handle(server) for _ in range(3)]
    parent = os.getpid()
    if os.fork() == 0:
        # Nothing of the server's goes on in the worker: not its loop, and not what it does at its exit.
        try:
            os.setpgid(0, 0)  # Ctrl-C goes to the coordinator alone.
            _end_with_the_parent()
            if os.getppid() == parent:
                server.close()
                os.fchdir(folder)
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.environ.clear()
                os.environ.update(environment)
                connection = Connection(pipe)
                connection.send(WorkerStarted(os.getpid()))
                work(connection)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    for handle in handles:
        os.close(handle)


def _import_trainer() -> None:
    # Nothing of the libraries is garbage: a search of their half a million objects, of which an import makes many and
    # Keras one before each trial, takes a quarter of a second.
    gc.disable()
    import fashion_study.worker.trainer  # noqa: F401

    gc.freeze()
    gc.enable()


def _end_with_the_parent() -> None:
    """Let the kernel end this process with its parent, where it can (Linux).

    The listener does so everywhere, but not while the process is stopped, nor while native code keeps Python's lock,
    as it does for seconds when TensorFlow is imported.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _listen(connection: Connection, inbox: "SimpleQueue[Any]") -> None:
    """Pass messages on; when the coordinator is gone, so is this process, whatever it is doing."""
    while True:
        try:
            inbox.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)


if __name__ == "__main__":
    main()
