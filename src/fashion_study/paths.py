"""Paths as a user writes them."""

import os
from pathlib import Path


def expanded(path: Path | str) -> Path:
    """Return a path with its `~` replaced by the home folder, or unchanged where the account has none."""
    # Path.expanduser would raise an error for an account without a home.
    return Path(os.path.expanduser(path))  # noqa: PTH111
