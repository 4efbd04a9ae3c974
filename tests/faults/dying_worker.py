"""A real worker, TensorFlow and all, that is killed at steps of its training that were drawn before.

A step is the beginning of an epoch, some milliseconds within it, the moment before a checkpoint is in its place, or
that after. `FAULTS_DEATHS` names a file with the numbers of the steps that kill, `FAULTS_STEPS` one to which each step
adds a line: of all workers of a study, one after another.
"""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fashion_study.worker import process

DEATHS, STEPS = "FAULTS_DEATHS", "FAULTS_STEPS"
# An epoch of the smoke space takes some 50.
WITHIN_SECONDS = 0.02


def take(name: str) -> bool:
    """Add a step, and say whether it kills."""
    steps = Path(os.environ[STEPS])
    with steps.open("a") as file:
        file.write(f"{name}\n")
    number = len(steps.read_text().splitlines())
    return str(number) in Path(os.environ[DEATHS]).read_text().split()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch(owner: Any, name: str, *before: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
    function: Callable[..., Any] = getattr(owner, name)

    def watched(*args: Any) -> Any:
        for step in before:
            step()
        result = function(*args)
        after()
        return result

    setattr(owner, name, watched)


def stepping(name: str) -> Callable[[], None]:
    return lambda: die() if take(name) else None


def within_an_epoch() -> None:
    if take("within an epoch"):
        threading.Timer(WITHIN_SECONDS, die).start()


def main() -> None:
    from fashion_study.store import checkpoints
    from fashion_study.training import fit
    from fashion_study.worker import trainer

    watch(fit, "_run_epoch", stepping("before an epoch"), within_an_epoch)
    watch(vars(checkpoints)["os"], "fsync", stepping("within the write"))
    watch(trainer.Trainer, "_save", after=stepping("after the write"))
    process.main()


if __name__ == "__main__":
    process._end_with_the_parent()
    main()
