"""The results of a benchmark: tables to read, and a JSON file with the machine, the commit and the number of runs."""

import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
from joblib import cpu_count
from rich.console import Console
from rich.table import Table

from fashion_study.statistics import CONFIDENCE, student_interval

# The JSON files go here by default; make clean removes it.
FOLDER = Path("build/benchmarks")
LIBRARIES = ("tensorflow", "keras", "mlflow", "optuna", "keras-tuner", "ray")
# Processor extensions that decide which arithmetic is fast.
EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Line:
    """One figure as text: what was measured, the value, the goal, and the number of measurements.

    Without an `n` of its own it was measured as often as the whole benchmark.
    """

    what: str
    measured: str
    goal: str = ""
    n: int | None = None


def points_line(what: str, points: Sequence[float], goal: str = "") -> Line:
    """Return a line with the mean of differences in percentage points and its confidence interval (Student's t)."""
    low, high = student_interval(points)
    return Line(what, f"{mean(points):+.2f} points ({CONFIDENCE:.0%}: {low:+.2f} to {high:+.2f})", goal)


def publish(
    name: str, tables: Sequence[Table], lines: Sequence[Line], figures: Mapping[str, Any], n: int, output: Path
) -> None:
    """Print the tables and the lines, and write the figures as JSON; `n` is how often each was measured."""
    for table in tables:
        print_table(table)
    print_table(lines_table(name, _counted(lines, n)))
    write(name, lines, figures, n, output)


def write(name: str, lines: Sequence[Line], figures: Mapping[str, Any], n: int, output: Path) -> None:
    """Write the figures as JSON atomically: a kill leaves the earlier file or the new one."""
    lines = _counted(lines, n)
    results = {"benchmark": name, **surroundings(), "n": n, "lines": [asdict(line) for line in lines], **figures}
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f"{output.name}.part")
    part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    part.replace(output)


def _counted(lines: Sequence[Line], n: int) -> list[Line]:
    return [replace(line, n=n if line.n is None else line.n) for line in lines]


def lines_table(title: str, lines: Sequence[Line]) -> Table:
    """Return lines as a table."""
    table = table_of(title, "measured", "goal", "n")
    for line in lines:
        table.add_row(line.what, line.measured, line.goal, str(line.n))
    return table


def table_of(title: str, *headings: str) -> Table:
    """Return a table whose first column is text and whose other columns are figures."""
    table = Table(title=title, title_justify="left")
    table.add_column()
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def print_table(table: Table) -> None:
    """Print a table in full, whatever the terminal's width."""
    Console(width=160).print(table)


def surroundings() -> dict[str, Any]:
    """Return the machine, the commit, the time and the libraries, without names of hosts and folders."""
    from fashion_study.tracking.runs import code_commit

    return {
        "machine": machine(),
        "commit": code_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": [_without_folders(word) for word in sys.argv[1:]],
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
    }


def machine() -> dict[str, Any]:
    """Return the processor, as far as it decides about speed, and its load from other work."""
    flags = _cpu_field("flags").split()
    return {
        "processor": _cpu_field("model name") or platform.machine(),
        "cores": int(cpu_count()),
        "extensions": [name for name in EXTENSIONS if name in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def _without_folders(word: str) -> str:
    return re.sub(r"[^=]*/", "", word)


def _cpu_field(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # Linux only.
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
