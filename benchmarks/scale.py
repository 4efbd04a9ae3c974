"""The growth of a study's cost with its trials and its workers.

`python -m benchmarks.scale` grows stores of toy trials, takes each study up again in a fresh process, and runs some
trials more through the real coordinator, engine and stores, with simulated workers that answer at once. Every call of
the engine and of the tracker is timed where it happens.
"""

import gc
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import typer

from benchmarks.processes import in_a_fresh_process, use_own_stores
from benchmarks.results import FOLDER, Line, print_table, publish, table_of, write
from experiments._entry import run
from fashion_study.config import SamplerName

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.toy_study import ToyStudy

SIZES, SHORT_SIZES, LARGEST = (100, 1_000, 10_000), (100, 1_000), 100_000
WORKERS, SHORT_WORKERS = (2, 16, 64), (16,)
SAMPLERS: tuple[SamplerName, ...] = ("random", "tpe")
EPOCHS = 5
# So many trials a worker, and at least so many, stand behind a quantile.
ROUNDS_OF_WORKERS, FEWEST_TRIALS = 2, 40
SEED_TRIALS = 16
# A study beside the one that is measured, which brings the libraries in.
EMPTY = "empty"
REPEATS = 20
GOALS_MS = {"ask random": 30.0, "ask tpe": 150.0}
OTHER_GOAL_MS, GOAL_KB = 20.0, 8.0
GOAL_SIZE = 10_000
# Once in a study, at its end, so that no goal is set for it.
LOGGED_ONCE = "leaderboard, as a table to be logged"
ENGINE, TRACKER = ("ask", "report", "tell"), ("open_trial", "log_epochs", "record_result", "close_trial")

# Of every call the seconds by the wall and those of the processor: on a busy machine only the latter say something.
Times = dict[str, list[tuple[float, float]]]


def main(
    short: Annotated[bool, typer.Option("--short", help="Up to 1,000 trials, 16 workers.")] = False,
    full: Annotated[bool, typer.Option("--full", help="100,000 trials as well.")] = False,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "scale.json",
) -> None:
    """Measure every size and print the quantiles beside their goals."""
    use_own_stores()
    sizes = SHORT_SIZES if short else (*SIZES, LARGEST) if full else SIZES
    rows: list[dict[str, Any]] = []
    for size in sizes:
        rows.append(_measured(size, SHORT_WORKERS if short else WORKERS))
        for table in _tables(rows[-1]):
            print_table(table)
        # Each time anew: the largest take half an hour, and an interruption keeps the others.
        write("scale", _lines(rows), {"rows": rows}, 1, output)
    publish("scale", [], _lines(rows), {"rows": rows}, 1, output)


def _measured(size: int, workers: tuple[int, ...]) -> dict[str, Any]:
    """Measure a study of `size` trials with each sampler and number of workers, each on a store as it was grown."""
    with tempfile.TemporaryDirectory() as folder:
        grown = Path(folder, "grown")
        seconds = in_a_fresh_process(_grow, grown, size)
        row: dict[str, Any] = {"size": size, "grown_s": seconds, "store_mb": _megabytes(grown)}
        row["runs"] = [
            {"sampler": sampler, "workers": slots, **_on_a_copy(grown, _run_on, sampler, slots)}
            for sampler in SAMPLERS
            for slots in workers
        ]
        row["reads"] = _on_a_copy(grown, _read)
    return row


def _on_a_copy(grown: Path, function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    copy = grown.with_name("copy")
    shutil.copytree(grown, copy)
    try:
        return in_a_fresh_process(function, copy, *arguments)
    finally:
        shutil.rmtree(copy)
        shutil.rmtree(grown.with_name(EMPTY), ignore_errors=True)


def _grow(root: Path, size: int) -> float:
    from benchmarks.growth import grow
    from benchmarks.toy_study import open_toy_study

    started = time.perf_counter()
    study = open_toy_study(root, EPOCHS)
    study.run(SEED_TRIALS, _executor(2))
    grow(root, size)
    return time.perf_counter() - started


def _run_on(root: Path, sampler: SamplerName, workers: int) -> dict[str, Any]:
    """Take a study up, run some trials more, and return the quantiles of every call and the memory of a trial."""
    before = _with_everything_imported(root.with_name(EMPTY))
    study = _open(root, sampler)
    held = _memory() - before
    times: Times = defaultdict(list)
    trials = max(FEWEST_TRIALS, ROUNDS_OF_WORKERS * workers)
    started = time.perf_counter()
    study.run(
        trials,
        _executor(workers),
        Clocked(study.engine, ENGINE, times),
        Clocked(study.tracker, TRACKER, times),
    )
    return {
        "resumed_ms": 1000 * study.resumed,
        "trials_per_s": trials / (time.perf_counter() - started),
        "held_kb": held / 1024,
        "held_at_the_end_kb": (_memory() - before) / 1024,
        "times": {name: _quantiles(seconds) for name, seconds in times.items()},
    }


def _read(root: Path) -> dict[str, Any]:
    """Read what a person asks of a study (best trial, leaderboard, report), and what is logged at its end."""
    from fashion_study.report.publish import publish_report
    from fashion_study.study.leaderboard import rank, table

    study = _open(root, "tpe")
    ranked = rank(study.trial_storage.records())
    calls: dict[str, Callable[[], object]] = {
        "best": study.trial_storage.best,
        "counted": study.trial_storage.counted,
        "leaderboard, ranked": lambda: rank(study.trial_storage.records()),
        LOGGED_ONCE: lambda: table(ranked),
        "report page": lambda: publish_report("toy", root, root / "toy.html"),
    }
    return {
        "times": {name: _quantiles(_clocked(call, 3 if "page" in name else REPEATS)) for name, call in calls.items()}
    }


def _clocked(call: Callable[[], object], times: int) -> list[tuple[float, float]]:
    call()
    seconds = []
    for _ in range(times):
        started = _now()
        call()
        seconds.append(_since(started))
    return seconds


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(started: tuple[float, float]) -> tuple[float, float]:
    wall, processor = _now()
    return wall - started[0], processor - started[1]


class Clocked:
    """Pass every call on to `inner`, and keep how long each of those named took."""

    def __init__(self, inner: Any, names: tuple[str, ...], times: Times) -> None:
        self._inner = inner
        self._names = names
        self._times = times

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in self._names:
            return method

        def clocked(*args: Any, **kwargs: Any) -> Any:
            started = _now()
            try:
                return method(*args, **kwargs)
            finally:
                self._times[name].append(_since(started))

        return clocked


def _open(root: Path, sampler: SamplerName) -> "ToyStudy":
    from benchmarks.toy_study import open_toy_study

    return open_toy_study(root, EPOCHS, sampler)


def _executor(workers: int) -> Any:
    from benchmarks.toy_study import METRICS, TAGS
    from fashion_study.executors.executor import Event
    from fashion_study.testing.memory import MemoryExecutor
    from fashion_study.trial import TrialResult

    class FullMemoryExecutor(MemoryExecutor):
        def wait(self, timeout: float) -> list[Event]:
            events = super().wait(timeout)
            return [replace(e, metrics=METRICS, tags=TAGS) if isinstance(e, TrialResult) else e for e in events]

    return FullMemoryExecutor(workers)


def _with_everything_imported(empty: Path) -> int:
    """Return the memory of a coordinator that has run a study already, so that libraries do not count as trials."""
    study = _open(empty, "tpe")
    study.run(SEED_TRIALS, _executor(2))
    return _memory()


def _memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def _megabytes(store: Path) -> dict[str, float]:
    return {name: (store / f"{name}.db").stat().st_size / 2**20 for name in ("optuna", "mlflow")}


def _quantiles(seconds: list[tuple[float, float]]) -> dict[str, float]:
    """Return the median, the 95th percentile and the maximum in milliseconds, and of how many."""
    wall, processor = zip(*seconds, strict=True)
    marks, busy = (quantiles(each, n=20, method="inclusive") for each in (wall, processor))
    return {
        "p50": 1000 * marks[9],
        "p95": 1000 * marks[18],
        "max": 1000 * max(wall),
        "cpu_p50": 1000 * busy[9],
        "cpu_p95": 1000 * busy[18],
        "n": len(seconds),
    }


def _tables(row: dict[str, Any]) -> tuple["Table", "Table"]:
    store = " + ".join(f"{size:.1f}" for size in row["store_mb"].values())
    title = f"{row['size']:,} trials: stores {store} MB (Optuna + MLflow), grown in {row['grown_s']:.0f} s"
    names = (*ENGINE, *TRACKER)
    table = table_of(f"{title}; p50 / p95 in ms", *names, "resume", "MB held", "at the end", "trials/s")
    for measured in row["runs"]:
        table.add_row(
            f"{measured['sampler']}, {measured['workers']} workers",
            *(_pair(measured["times"][name]) for name in names),
            f"{measured['resumed_ms']:,.0f}",
            f"{measured['held_kb'] / 1024:.1f}",
            f"{measured['held_at_the_end_kb'] / 1024:.1f}",
            f"{measured['trials_per_s']:.1f}",
        )
    reads = table_of(f"what is read of {row['size']:,} trials", "p50 / p95 in ms")
    for name, marks in row["reads"]["times"].items():
        reads.add_row(name, _pair(marks))
    return table, reads


def _pair(marks: dict[str, float]) -> str:
    return f"{marks['p50']:.1f} / {marks['p95']:.1f}"


def _lines(rows: list[dict[str, Any]]) -> list[Line]:
    """Say how the worst case of each call does at the size that has goals, and what a larger one makes of it.

    Where neither was measured the largest size speaks for itself, without goals.
    """
    by_size = {row["size"]: row for row in rows}
    aimed, largest = by_size.get(GOAL_SIZE), rows[-1]
    lines = _lines_of(aimed, rows[0], goals=True) if aimed else []
    if aimed is not largest:
        lines += _lines_of(largest, rows[0], aimed)
    return lines


def _lines_of(
    row: dict[str, Any], smallest: dict[str, Any], reference: dict[str, Any] | None = None, *, goals: bool = False
) -> list[Line]:
    calls, before = _worst(row), _worst(reference) if reference else {}
    trials = f"{row['size']:,} trials"
    lines = []
    for name, marks in calls.items():
        processor = f"processor {marks['cpu_p95']:,.1f}"
        if name in before:
            processor += f", {marks['cpu_p95'] / before[name]['cpu_p95']:.1f} times that of {GOAL_SIZE:,}"
        measured = f"{marks['p95']:,.1f} ms ({processor})"
        lines.append(Line(f"{name}, {trials}, p95", measured, _goal(name) if goals else "", int(marks["n"])))
    resumed = _resumed(row)
    more = f", {resumed / _resumed(reference):.1f} times that of {GOAL_SIZE:,}" if reference else ""
    memory = _memory_a_trial(smallest, row)
    runs = len(row["runs"])
    return [
        *lines,
        Line(
            f"resume, {trials}, longest", f"{resumed:,.0f} ms{more}", f"{OTHER_GOAL_MS:.0f} ms" if goals else "", runs
        ),
        Line(f"coordinator's memory, {trials}, highest", memory, f"{GOAL_KB:.0f} KB a trial" if goals else "", runs),
    ]


def _worst(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return of each call the quantiles of the run that had the highest."""
    worst: dict[str, dict[str, float]] = {}
    for measured in row["runs"]:
        for name, marks in measured["times"].items():
            called = f"ask {measured['sampler']}" if name == "ask" else name
            worst[called] = max(worst.get(called, marks), marks, key=lambda each: each["p95"])
    worst.update(row["reads"]["times"])
    return worst


def _resumed(row: dict[str, Any]) -> float:
    return max(float(measured["resumed_ms"]) for measured in row["runs"])


def _goal(name: str) -> str:
    return "" if name == LOGGED_ONCE else f"{GOALS_MS.get(name, OTHER_GOAL_MS):.0f} ms"


def _memory_a_trial(small: dict[str, Any], large: dict[str, Any]) -> str:
    """Say what a trial takes by what two sizes hold: what a coordinator takes whatever the size falls out.

    They hold the most when some trials more were asked for and told.
    """
    held, less = (max(measured["held_at_the_end_kb"] for measured in row["runs"]) for row in (large, small))
    if large is small:
        return f"{held / 1024:.1f} MB in all"
    return f"{(held - less) / (large['size'] - small['size']):.1f} KB a trial"


if __name__ == "__main__":
    run(main)
