"""Who owns what is open: one process at a time owns a study, and others can see which."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from fashion_study.errors import StoreError

# A process that was given the number of an earlier one started at another time; clocks are read to the second.
SAME_START_SECONDS = 2.0
# A database may have been handed over, with names in it that are paths.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class LockHolder:
    """Name the process that owns something; `pid` is None where it left no word, or the wrong one."""

    pid: int | None = None
    command: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})" if self.pid else "another process"


def lock_file(root: Path, name: str) -> Path:
    """Return the file whose lock stands for `name`; where that is no plain name, the file has its digest."""
    is_plain = PLAIN_NAME.fullmatch(name)
    return root / "locks" / f"{name if is_plain else hashlib.sha256(name.encode()).hexdigest()}.lock"


@contextmanager
def claim(root: Path, name: str) -> Iterator[LockHolder | None]:
    """Own `name` in the store at `root` while the block runs, and yield None.

    Where another process owns it already, yield who that is. The operating system frees the lock when its owner dies,
    so an owner is alive, however old its word is.
    """
    file = lock_file(root, name)
    file.parent.mkdir(exist_ok=True)
    word = file.with_name(f"{file.name.removesuffix('.lock')}.json")
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield _read(word)
        return
    try:
        process = psutil.Process()
        word.write_text(json.dumps({"pid": process.pid, "started": _started(process)}))
        yield None
    finally:
        word.unlink(missing_ok=True)
        lock.release()


@contextmanager
def sole_owner(root: Path, name: str) -> Iterator[None]:
    """Keep a second coordinator off a study.

    Raises:
        StoreError: another process holds the study.
    """
    with claim(root, name) as holder:
        if holder is not None:
            raise StoreError(
                f"Study {name!r} is being run by {holder}. Expected one coordinator per study. "
                "Wait for it, stop it, or give this study another name with --study."
            )
        yield


def _read(word: Path) -> LockHolder:
    try:
        known = json.loads(word.read_text())
        process = psutil.Process(int(known["pid"]))
        if abs(_started(process) - float(known["started"])) > SAME_START_SECONDS:
            return LockHolder()
        return LockHolder(process.pid, " ".join(process.cmdline()[-6:]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, psutil.Error):
        return LockHolder()


def _started(process: psutil.Process) -> float:
    # Since the machine's start: the time of day is another one once a clock is set.
    return process.create_time() - psutil.boot_time()
