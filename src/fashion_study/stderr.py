"""TensorFlow in the process of a command, without its remarks on the machine."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


def import_without_stderr(library: str) -> None:
    """Import TensorFlow, or what brings it, keeping what it writes to standard error meanwhile away from the user.

    It says there, past Python and past its own setting of a level, that it found no GPU. What goes wrong is raised.
    It takes GPU memory as it needs it: a study may be training on the same one.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with _standard_error_closed():
        import_module(library)


@contextmanager
def _standard_error_closed() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
