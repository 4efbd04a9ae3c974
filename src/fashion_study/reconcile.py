"""Bring ledger and runs together before a study goes on: what a kill left running is running no more."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock, Timeout

from fashion_study.engines.ledger import Ledger
from fashion_study.errors import StoreError
from fashion_study.trial import TrialState

if TYPE_CHECKING:
    from fashion_study.tracking.runs import MlflowTracker


@contextmanager
def sole_owner(root: Path, study_name: str) -> Iterator[None]:
    """Keep a second coordinator off a study; the operating system frees the lock when its owner dies.

    Raises:
        StoreError: another process holds the study.
    """
    folder = root / "locks"
    folder.mkdir(exist_ok=True)
    holder = folder / f"{study_name}.json"
    lock = FileLock(folder / f"{study_name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"Study {study_name!r} is being run by {_describe(holder)}. Expected one coordinator per study. "
            "Wait for it, stop it, or give this study another name with --study."
        ) from None
    try:
        process = psutil.Process()
        holder.write_text(json.dumps({"pid": process.pid, "started": process.create_time()}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def reconcile(ledger: Ledger, tracker: "MlflowTracker") -> list[str]:
    """Send trials without a living owner back to waiting, end their runs, and say in a line each what was done.

    The caller holds the study's lock, so whatever is marked as running has no owner.
    """
    done = []
    open_runs = tracker.open_runs()
    for record in ledger.records():
        if record.state is not TrialState.RUNNING:
            continue
        if record.run_id in open_runs:
            state = ledger.release(record.number)
            done.append(f"trial {record.number:03d} was cut off in attempt {record.attempt}; it is {state} now")
        else:
            ledger.withdraw(record.number)  # Proposed ahead, and no worker had begun it.
    records = {record.run_id: record for record in ledger.records()}
    for run_id, number in open_runs.items():
        state = records[run_id].state if run_id in records else TrialState.WAITING
        tracker.interrupt_trial(number, run_id, "the coordinator died", state)
        if run_id not in records:
            done.append(f"run {run_id} of trial {number:03d} belonged to no attempt; it is ended now")
    return done


def _describe(holder: Path) -> str:
    try:
        known = json.loads(holder.read_text())
        process = psutil.Process(known["pid"])
        if process.create_time() != known["started"]:  # The number has been given to another process.
            return "another process"
        return f"process {process.pid} ({' '.join(process.cmdline()[-6:])})"
    except (OSError, ValueError, KeyError, psutil.Error):
        return "another process"
