"""The checkpoints of a study: those that nothing can go on from."""

import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from fashion_study.finding import Finding, Kind, repairing
from fashion_study.store.checkpoints import SUFFIX, UnusableCheckpointError, read
from fashion_study.store.locks import PLAIN_NAME

# What a worker writes; the number of its process follows until the file is whole.
FILE_NAME = re.compile(rf"trial-\d{{3,9}}(?:-repeat-\d{{1,9}})?{re.escape(SUFFIX)}(?:\.(?P<pid>\d{{1,9}}))?")


def useless_checkpoints(folder: Path) -> Iterator[Finding]:
    """Find files that were being written by a process that has ended, and files that are torn.

    The folder is named by the study: one that leads out of the store is another person's, and nothing is looked at.
    """
    if not PLAIN_NAME.fullmatch(folder.name) or folder.is_symlink():
        return
    for path in sorted(folder.glob(f"*{SUFFIX}*")):
        named = FILE_NAME.fullmatch(path.name)
        if named is None:
            continue
        if named["pid"] is not None and not psutil.pid_exists(int(named["pid"])):
            what = "was being written when its process ended"
        elif named["pid"] is None and _is_torn(path):
            what = "is not as it was written: what it is of begins again with its first epoch"
        else:
            continue
        delete = repairing("it is deleted now", path.unlink, True)
        yield Finding(Kind.CHECKPOINT, f"checkpoint {path.name}", what, "deletes it", delete)


def _is_torn(path: Path) -> bool:
    try:
        read(path)
    except UnusableCheckpointError as error:
        return not isinstance(error.__cause__, OSError)  # One that cannot be read may be whole.
    return False
