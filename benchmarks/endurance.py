"""The memory of the workers over many real trials in a row.

`python -m benchmarks.endurance` runs the smoke space on the digits through real workers and samples what each holds in
RAM. A worker is renewed after some attempts, which keeps the memory of all flat whatever one of them gathers: what it
gains with each attempt within its life is shown beside.
"""

import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import psutil
import typer
import yaml

from benchmarks.processes import use_own_stores
from benchmarks.results import FOLDER, Line, publish
from experiments._entry import run
from fashion_study.config import StudyConfig
from fashion_study.executors.local import ATTEMPTS_PER_FORK, default_workers
from fashion_study.study.progress import Observer
from fashion_study.trial import TrialResult, TrialSpec

SAMPLE_SECONDS = 1.0
# With its first attempts a worker gets libraries and compiled functions, which it has once.
FIRST_ATTEMPTS = 2
# Fewer behind them tell more of how an allocator breathes than of what stays.
FEWEST_ATTEMPTS = 6
MIB = 2**20


def main(
    trials: Annotated[int, typer.Option(min=10, help="How many in a row.")] = 200,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train.")] = default_workers(),
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "endurance.json",
) -> None:
    """Run the trials and print the memory of the workers early and late, and what one gains with each attempt."""
    from fashion_study.study.run import run_study

    use_own_stores()
    samples = Samples()
    with tempfile.TemporaryDirectory() as folder, samples.taken():
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
        result = run_study(config, samples)
    lives = [held for held in samples.held.values() if len(held) > 1]
    peaks = [max(sample.mib for sample in held) for held in lives]
    growths = [growth for held in lives if (growth := growth_per_attempt(held, workers)) is not None]
    totals = _totals(lives)
    early, late = _quarter(totals, 1), _quarter(totals, 3)
    publish(
        "endurance",
        [],
        [
            Line(f"memory of {workers} workers, second quarter of {result.counted} trials", f"{early:,.0f} MiB"),
            Line("the same, last quarter", f"{late:,.0f} MiB, {late / early:.2f} times", "flat"),
            _growth_line(growths),
            Line("highest of any worker process", f"{max(peaks):,.0f} MiB", n=len(peaks)),
        ],
        {
            "trials": result.counted,
            "seconds": result.seconds,
            "attempts_per_worker": ATTEMPTS_PER_FORK,
            "growths_mib": growths,
            "peaks_mib": peaks,
            "totals_mib": totals,
        },
        1,
        output,
    )


def _growth_line(growths: Sequence[float]) -> Line:
    what = f"growth of a worker with each attempt; its renewal after {ATTEMPTS_PER_FORK} bounds it"
    if not growths:
        return Line(what, "no life was long enough", n=0)
    return Line(what, f"{median(growths):+.1f} MiB ({min(growths):+.1f} to {max(growths):+.1f})", n=len(growths))


def _endless_space() -> dict[str, object]:
    """Return the smoke space with room for any number of trials."""
    space: dict[str, dict[str, dict[str, object]]] = yaml.safe_load(
        Path("search_spaces/smoke.yaml").read_text(encoding="utf-8")
    )
    space["parameters"]["epochs"] |= {"high": 2, "grid": [1, 2]}
    return dict(space)


@dataclass(frozen=True)
class Sample:
    """The RAM of a worker at a moment, and how many trials all workers had closed by then."""

    moment: int
    closed: int
    mib: float


@dataclass
class Samples(Observer):
    """An observer that counts a study's trials and samples the memory of every child process."""

    closed: int = 0
    held: dict[int, list[Sample]] = field(default_factory=lambda: defaultdict(list))

    def trial_closed(self, spec: TrialSpec, result: TrialResult, best: tuple[int, float] | None) -> None:  # noqa: ARG002
        """Count it."""
        self.closed += 1

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take samples until the block ends."""
        ended = threading.Event()

        def sample() -> None:
            moment = 0
            while not ended.wait(SAMPLE_SECONDS):
                moment += 1
                # The process that forks the workers is no worker.
                for child in (each for server in psutil.Process().children() for each in server.children()):
                    try:
                        mib = child.memory_info().rss / MIB
                    except psutil.Error:
                        continue
                    if mib:  # One that has just ended holds nothing.
                        self.held[child.pid].append(Sample(moment, self.closed, mib))

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def growth_per_attempt(held: Sequence[Sample], workers: int) -> float | None:
    """Return the slope of a worker's MiB over its attempts behind the first ones; None for too short a life.

    Workers are equally busy: of the trials that are closed during a worker's life it has had its share.
    """
    attempts = np.array([sample.closed - held[0].closed for sample in held]) / workers
    settled = attempts >= FIRST_ATTEMPTS
    if attempts[-1] < FIRST_ATTEMPTS + FEWEST_ATTEMPTS:
        return None
    return float(np.polyfit(attempts[settled], np.array([sample.mib for sample in held])[settled], 1)[0])


def _totals(lives: Sequence[Sequence[Sample]]) -> list[float]:
    """Add up what all workers hold at each moment, in MiB."""
    by_moment: dict[int, float] = defaultdict(float)
    for held in lives:
        for sample in held:
            by_moment[sample.moment] += sample.mib
    return [by_moment[moment] for moment in sorted(by_moment)]


def _quarter(totals: list[float], number: int) -> float:
    step = max(1, len(totals) // 4)
    return median(totals[number * step : (number + 1) * step])


if __name__ == "__main__":
    run(main)
