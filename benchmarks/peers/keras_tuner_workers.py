"""The KerasTuner script as a chief and as tuners, told apart by environment variables, as its guide says.

`python -m benchmarks.peers.keras_tuner_workers FOLDER`. It imports none of the libraries, so that all begin at once.
"""

import os
import socket
import subprocess
import sys
import time

from benchmarks.peers.task import Task, read_task

SCRIPT = "benchmarks.peers.keras_tuner_script"


def main(task: Task) -> None:
    """Start a chief and one tuner for each worker of the task, and wait for the tuners."""
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(_free_port())}
    names = ["chief", *(f"tuner{number}" for number in range(task.workers or 1))]
    chief, *tuners = (
        subprocess.Popen(
            [sys.executable, "-m", SCRIPT, str(task.folder)], env=os.environ | address | {"KERASTUNER_TUNER_ID": name}
        )
        for name in names
    )
    while any(tuner.poll() is None for tuner in tuners):
        if chief.poll():  # It failed, and tuners would wait an hour for it; otherwise it outlives them, or nearly.
            for tuner in tuners:
                tuner.kill()
        time.sleep(0.1)
    codes = [tuner.wait() for tuner in tuners]
    # The chief looks only every 20 s whether its tuners have gone: that is not held against it.
    chief.terminate()
    chief.wait()
    if any(codes):
        raise RuntimeError(f"a tuner failed: they ended with {codes}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    main(read_task(sys.argv))
