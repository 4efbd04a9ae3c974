"""Paths as a user writes them, and the folder for temporary files."""

import os
import tempfile
from pathlib import Path

from fashion_study.errors import StoreError

# More than the model files here take. Python itself is content with a folder that takes four bytes.
ROOM = 4 * 2**20


def expanded(path: Path | str) -> Path:
    """Return a path with its `~` replaced by the home folder, or unchanged where the account has none."""
    # Path.expanduser would raise an error for an account without a home.
    return Path(os.path.expanduser(path))  # noqa: PTH111


def check_temporary_folder() -> None:
    """Refuse to go on where nothing can be kept for a moment: whatever is sent to MLflow or fetched from it lies there.

    Raises:
        StoreError: no folder can be written, or the one that Python takes is full.
    """
    folder = "TMPDIR or /tmp"
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(ROOM))
            if (written := file.tell()) < ROOM:
                # A file system that is full takes what fits, and raises an error for the rest.
                file.write(bytes(ROOM - written))
    except OSError as error:
        raise StoreError(
            f"The folder for temporary files, {folder}, cannot be used: {error.strerror or error}. Expected room for "
            f"{ROOM // 2**20} MiB. Free some there, or set TMPDIR to another folder."
        ) from error
