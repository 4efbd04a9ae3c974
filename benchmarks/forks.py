"""A thousand forked workers, one after another, each with one step of training.

`python -m benchmarks.forks` gives every attempt a worker of its own, through the executor that a study has. It fails
where a worker does, and where for a minute nothing comes from any.
"""

import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import psutil
import typer

from benchmarks.processes import use_own_stores
from benchmarks.results import FOLDER, Line, publish
from experiments._entry import run
from fashion_study.data.catalog import locate
from fashion_study.executors.local import LocalExecutor, default_workers, threads_per_worker
from fashion_study.trial import EpochReport, Hyperparameters, TrialResult, TrialSpec, TrialState, WorkerSettings

BATCH = 64
# Longer than an import of TensorFlow on a busy machine, and than any training of one step.
HANGS_AFTER = 60.0
MIB = 2**20


def main(
    forks: Annotated[int, typer.Option(min=10, help="How many workers in all.")] = 1_000,
    workers: Annotated[int, typer.Option(min=1, help="How many at once.")] = default_workers(),
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "forks.json",
) -> None:
    """Fork the workers and print how long one takes, and what the fork server holds."""
    use_own_stores()
    with tempfile.TemporaryDirectory() as folder, patch("fashion_study.executors.local.ATTEMPTS_PER_FORK", 1):
        threads = threads_per_worker(workers)
        settings = WorkerSettings(locate("digits"), BATCH, threads, f"sqlite:///{folder}/none.db", records=False)
        executor = LocalExecutor(settings, workers, Path(folder, "logs"))
        try:
            ends, held = _train(executor, forks)
        finally:
            executor.close()
    seconds = (ends[-1] - ends[0]) / (forks - 1)
    slowest = max(after - before for before, after in pairwise(ends))
    quarter = forks // 4
    early, late = max(held[:quarter]), max(held[-quarter:])
    publish(
        "forks",
        [],
        [
            Line(f"{forks:,} forked workers, {workers} at once: complete", f"{len(ends):,}", f"{forks:,}"),
            Line("a worker, from its fork to its end, with one step of training", f"{seconds * workers:.2f} s"),
            Line("longest time without an end", f"{slowest:.1f} s"),
            Line("fork server, first quarter and last", f"{early:,.0f} and {late:,.0f} MiB", "flat"),
        ],
        {"ends": [end - ends[0] for end in ends], "server_mib": held},
        forks,
        output,
    )


def _train(executor: LocalExecutor, forks: int) -> tuple[list[float], list[float]]:
    """Train each attempt to its end; return when each ended, and what the fork server held then in MiB."""
    params = Hyperparameters(filters_1=4, filters_2=4, filters_3=4, dense_units=4, batch_size=BATCH, epochs=1)
    ends: list[float] = []
    held: list[float] = []
    begun, last = 0, time.monotonic()
    while len(ends) < forks:
        while begun - len(ends) < executor.slots and begun < forks:
            executor.submit(TrialSpec(begun, 1, params, seed=begun))
            begun += 1
        for event in executor.wait(1.0):
            last = time.monotonic()
            match event:
                case EpochReport():
                    executor.answer(event, prune=False)
                case TrialResult(state=TrialState.COMPLETE):
                    ends.append(last)
                    held.append(_server_mib())
                case _:
                    raise RuntimeError(f"worker {event.number} of {forks} did not complete its training: {event}")
        if time.monotonic() - last > HANGS_AFTER:
            raise RuntimeError(f"after {len(ends)} of {forks} workers nothing came for {HANGS_AFTER:.0f} s")
    return ends, held


def _server_mib() -> float:
    """Return the RAM of this process's one child, the fork server."""
    (server,) = psutil.Process(os.getpid()).children()
    return float(server.memory_info().rss) / MIB


if __name__ == "__main__":
    run(main)
