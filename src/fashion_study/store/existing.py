"""A store that is there already, for what a user does after a study."""

import os
from collections.abc import Callable
from pathlib import Path

from fashion_study.errors import StoreError
from fashion_study.store.store import Store, open_store
from fashion_study.text import printable


def find_store(root: Path) -> Store:
    """Name what lies in the folder of an earlier study; make nothing where there is none.

    Raises:
        StoreError: the folder has no store or cannot be looked into, and `MLFLOW_TRACKING_URI` names none either.
    """
    # Path.expanduser would fail for an account without a home.
    folder = Path(os.path.expanduser(root))  # noqa: PTH111
    if not os.environ.get("MLFLOW_TRACKING_URI") and not _is_there((folder / "mlflow.db").is_file, folder):
        raise StoreError(
            f"There is no store in {printable(str(folder))}: it has no mlflow.db. Expected the folder of an earlier "
            "study. Run one with python -m experiments.run_study, or name its folder with --store."
        )
    return open_store(root, makes_folder=_is_there(folder.is_dir, folder))


def _is_there(check: Callable[[], bool], folder: Path) -> bool:
    try:
        return check()
    except OSError as error:
        raise StoreError(
            f"The store {printable(str(folder))} cannot be looked into: {error.strerror}. Expected the folder of an "
            "earlier study. Change its permissions, or name another one with --store."
        ) from error
