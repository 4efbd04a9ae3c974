"""Locks: one process at a time owns a study, and others can see which."""

import fcntl
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock, Timeout

from fashion_study.errors import StoreError
from fashion_study.store.postgres import claim_everywhere, connection_watch
from fashion_study.store.store import Store

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

# A process that has the number of an earlier one started at another time; clocks are read to the second.
SAME_START_SECONDS = 2.0
# A database may come from somebody else, with names in it that are paths.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def lock_file(root: Path, name: str) -> Path:
    """Return the file whose lock stands for `name`; where that is no plain name, the file has its digest."""
    is_plain = PLAIN_NAME.fullmatch(name)
    return root / "locks" / f"{name if is_plain else hashlib.sha256(name.encode()).hexdigest()}.lock"


@contextmanager
def claim(root: Path, name: str, *, only_looks: bool = False) -> Iterator[str | None]:
    """Own `name` in the store at `root` while the block runs, and yield None, else the process that owns it already.

    The operating system frees the lock of a process that dies, so its holder is alive. One that `only_looks`, as in a
    store that is read-only, owns nothing afterwards.
    """
    file = lock_file(root, name)
    metadata = file.with_name(f"{file.name.removesuffix('.lock')}.json")
    if only_looks:
        yield _holder(metadata) if _is_locked(file) else None
        return
    file.parent.mkdir(exist_ok=True)
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield _holder(metadata)
        return
    try:
        process = psutil.Process()
        metadata.write_text(json.dumps({"pid": process.pid, "started": _started(process)}))
        yield None
    finally:
        metadata.unlink(missing_ok=True)
        lock.release()


def claim_study(store: Store, storage: "RDBStorage", name: str) -> AbstractContextManager[str | None]:
    """Own a study as `claim` does, in the store's folder or among all machines that use its database."""
    if store.database is not None:
        return claim_everywhere(storage, name)
    return claim(store.root, name, only_looks=store.copies is not None)


@contextmanager
def sole_coordinator(store: Store, storage: "RDBStorage", name: str) -> Iterator[Callable[[], None]]:
    """Own a study, and yield a function that raises StoreError once the ownership is lost.

    Raises:
        StoreError: another process owns the study.
    """
    with claim_study(store, storage, name) as holder:
        if holder is not None:
            raise StoreError(
                f"Study {name!r} is being run by {holder}. Expected one coordinator per study. "
                "Wait for it, stop it, or give this study another name with --study."
            )
        # A living process never loses a lock in the folder.
        yield (lambda: None) if store.database is None else connection_watch(storage, store.database)


def _is_locked(file: Path) -> bool:
    """Return whether a process holds a lock; its file, which may be read-only, is only read."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # No file, or none that can be read.
    return False


def _holder(metadata: Path) -> str:
    """Return the process that holds a lock, "another process" where the lock's metadata are missing or wrong."""
    try:
        known = json.loads(metadata.read_text())
        process = psutil.Process(int(known["pid"]))
        if abs(_started(process) - float(known["started"])) <= SAME_START_SECONDS:
            return f"process {process.pid} ({' '.join(process.cmdline()[-6:])})"
    except (OSError, ValueError, TypeError, KeyError, OverflowError, psutil.Error):
        pass
    return "another process"


def _started(process: psutil.Process) -> float:
    # Since the machine's start: the time of day changes when a clock is set.
    return process.create_time() - psutil.boot_time()
