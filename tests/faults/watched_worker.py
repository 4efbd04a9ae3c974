"""A real worker, TensorFlow and all, that writes down in the journal when it records what it has trained."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from fashion_study.worker import process as worker
from tests.faults.journal import JOURNAL, Journal


def watch(journal: Journal, module: Any, name: str, phase: str) -> None:
    function: Callable[..., Any] = getattr(module, name)

    @wraps(function)
    def watched(*args: Any) -> Any:
        with journal.during(phase):
            return function(*args)

    setattr(module, name, watched)


def main() -> None:
    # Before TensorFlow is imported, as the worker itself does it.
    worker._end_with_the_parent()
    from fashion_study.worker import trainer

    journal = Journal(Path(os.environ[JOURNAL]), "worker")
    watch(journal, trainer, "record_evaluation", "artifact")
    watch(journal, trainer, "record_model", "model")
    worker.main()


if __name__ == "__main__":
    main()
