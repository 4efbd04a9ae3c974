"""A worker process: it trains one trial at a time for the coordinator at the other end of its connection.

Started as `python -m fashion_study.training.worker FD`, where FD is its end of a duplex pipe that it inherits.
"""

import os
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from fashion_study.trial import EpochReport, ProbeOrder, TrialSpec, WorkerFailed, WorkerReady, WorkerSettings


def main() -> None:
    """Load libraries and data once, then do what the coordinator sends until its end of the pipe closes."""
    connection = Connection(int(sys.argv[1]))
    settings: WorkerSettings = connection.recv()
    inbox: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    try:
        # Imported when the listener already watches for the coordinator: TensorFlow takes seconds.
        from fashion_study.training.trainer import Trainer

        trainer = Trainer(settings)
    except Exception:
        connection.send(WorkerFailed(f"A worker could not begin its work:\n{traceback.format_exc()}"))
        raise
    connection.send(WorkerReady())

    def ask_whether_to_go_on(report: EpochReport) -> bool:
        connection.send(report)
        return not inbox.get().prune

    while True:
        match inbox.get():
            case ProbeOrder():
                connection.send(trainer.probe())
            case TrialSpec() as spec:
                connection.send(trainer.train(spec, ask_whether_to_go_on))


def _listen(connection: Connection, inbox: "SimpleQueue[Any]") -> None:
    """Pass messages on; when the coordinator is gone, so is this process, whatever it is doing."""
    while True:
        try:
            inbox.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)


if __name__ == "__main__":
    main()
