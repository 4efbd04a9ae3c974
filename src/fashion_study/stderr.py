"""Standard error while TensorFlow is imported, which writes there past Python and past its own settings."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path


@contextmanager
def stderr_into(log: Path) -> Iterator[None]:
    """Send what is written to standard error while the block runs into a file; enter it before TensorFlow is imported.

    Some of it comes from native code before any setting is read, so the process's own descriptor is redirected.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def import_without_stderr(library: str) -> None:
    """Import TensorFlow, or a library that imports it, without its messages. Errors are raised as usual.

    TensorFlow takes GPU memory as it needs it: a study may be training on the same one.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Without a GPU the first operation writes errors at level 2.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with stderr_into(Path(os.devnull)):
        import_module(library)
