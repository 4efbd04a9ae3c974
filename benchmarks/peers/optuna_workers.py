"""Several processes of the Optuna script over one study, as a user would start them from several terminals.

`python -m benchmarks.peers.optuna_workers FOLDER`. It imports none of the libraries, so that all begin at once.
"""

import subprocess
import sys

from benchmarks.peers.task import Task, read_task

SCRIPT = "benchmarks.peers.optuna_script"


def main(task: Task) -> None:
    """Start one process for each worker of the task and wait for all."""
    command = [sys.executable, "-m", SCRIPT, str(task.folder)]
    processes = [subprocess.Popen(command) for _ in range(task.workers or 1)]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"a worker failed: they ended with {codes}")


if __name__ == "__main__":
    main(read_task(sys.argv))
