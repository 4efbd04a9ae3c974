"""Train many real trials in a row and see whether the memory of the workers stays where it is.

`python -m benchmarks.endurance` runs the smoke space on the digits through real workers, which are replaced after some
trials, and samples what each holds in RAM.
"""

import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated

import psutil
import typer
import yaml

from benchmarks.sheet import Line, publish
from fashion_study.config import StudyConfig
from fashion_study.executors.local import default_workers

SAMPLE_SECONDS = 1.0
MIB = 2**20


def main(
    trials: Annotated[int, typer.Option(min=10, help="How many in a row.")] = 200,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train.")] = default_workers(),
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("benchmarks-endurance.json"),
) -> None:
    """Run the trials and print the memory of the workers early and late."""
    from fashion_study.study import run_study

    with tempfile.TemporaryDirectory() as folder, _sampled() as samples:
        space = Path(folder, "endurance.yaml")
        space.write_text(yaml.safe_dump(_endless_space()), encoding="utf-8")
        config = StudyConfig(
            space=str(space),
            dataset="digits",
            trials=trials,
            workers=workers,
            pruner="none",
            sampler="random",
            finalists=0,
            store=Path(folder, "store"),
            precision="float32",
        )
        result = run_study(config)
    peaks = [max(rss for _, rss in held) / MIB for held in samples.values() if len(held) > 1]
    totals = _totals(samples)
    early, late = _quarter(totals, 1), _quarter(totals, 3)
    publish(
        "endurance",
        [],
        [
            Line(f"memory of {workers} workers, second quarter of {result.counted} trials", f"{early:,.0f} MiB"),
            Line("the same, last quarter", f"{late:,.0f} MiB, {late / early:.2f} times", "flat"),
            Line(f"highest of any of {len(peaks)} worker processes", f"{max(peaks):,.0f} MiB"),
        ],
        {"trials": result.counted, "seconds": result.seconds, "peaks_mib": peaks, "totals_mib": totals},
        1,
        output,
    )


def _endless_space() -> dict[str, object]:
    """Return the smoke space with room for any number of trials."""
    space: dict[str, dict[str, dict[str, object]]] = yaml.safe_load(
        Path("search_spaces/smoke.yaml").read_text(encoding="utf-8")
    )
    space["parameters"]["epochs"] |= {"high": 2, "grid": [1, 2]}
    return dict(space)


@contextmanager
def _sampled() -> Iterator[dict[int, list[tuple[float, int]]]]:
    """Sample the memory of every child process until the block ends."""
    samples: dict[int, list[tuple[float, int]]] = defaultdict(list)
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            for child in psutil.Process(os.getpid()).children():
                try:
                    samples[child.pid].append((time.monotonic(), child.memory_info().rss))
                except psutil.Error:
                    continue

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _totals(samples: dict[int, list[tuple[float, int]]]) -> list[float]:
    """Add up what all workers hold at each moment, in MiB."""
    by_moment: dict[int, float] = defaultdict(float)
    for held in samples.values():
        for moment, rss in held:
            by_moment[round(moment / SAMPLE_SECONDS)] += rss / MIB
    return [by_moment[moment] for moment in sorted(by_moment)]


def _quarter(totals: list[float], number: int) -> float:
    step = max(1, len(totals) // 4)
    return median(totals[number * step : (number + 1) * step])


if __name__ == "__main__":
    typer.run(main)
