"""The worker process, which trains one attempt at a time for the coordinator at the other end of its pipe.

Started as `python -m fashion_study.worker.process FD`, where FD is its end of a duplex pipe that it inherits.
"""

import ctypes
import gc
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from fashion_study.errors import StudyError
from fashion_study.text import truncated_traceback
from fashion_study.trial import EpochReport, ProbeOrder, TrialSpec, WorkerFailed, WorkerReady, WorkerSettings

PR_SET_PDEATHSIG = 1  # From <sys/prctl.h>.


def main() -> None:
    """Load libraries and data once, then train what the coordinator sends until its end of the pipe closes."""
    _end_with_the_coordinator()
    connection = Connection(int(sys.argv[1]))
    settings: WorkerSettings = connection.recv()
    inbox: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    try:
        # Nothing of the libraries is garbage: a search of their half a million objects, of which an import makes many
        # and Keras one before each trial, takes a quarter of a second.
        gc.disable()
        # Imported when the listener already watches for the coordinator: TensorFlow takes seconds.
        from fashion_study.worker.trainer import Trainer

        gc.freeze()
        gc.enable()
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
            case ProbeOrder():
                connection.send(trainer.probe())
            case TrialSpec() as spec:
                connection.send(trainer.train(spec, ask_whether_to_go_on))


def _end_with_the_coordinator() -> None:
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
