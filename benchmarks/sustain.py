"""The trials and reports a second that one coordinator takes in, on SQLite and on servers.

`python -m benchmarks.sustain` runs toy trials through the real coordinator, engine, trial storage and tracker, with
simulated workers that answer at once, in turn for every number of workers. The servers are those of `deploy/`, on this
machine, so that they and the coordinator share its processor.
"""

import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import typer

from benchmarks.processes import in_a_fresh_process, use_own_stores
from benchmarks.results import FOLDER, Line, publish, table_of
from experiments._entry import run

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.scale import Times
    from fashion_study.executors.executor import Executor

WORKERS, SHORT_WORKERS = (1, 16, 64, 256), (1, 16)
EPOCHS = 3
FEWEST_TRIALS = 32
REPEATS, SHORT_REPEATS = 3, 1
EMBEDDED, SERVERS = "SQLite", "PostgreSQL and MLflow server"


def main(
    short: Annotated[bool, typer.Option("--short", help="1 and 16 workers, each once.")] = False,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "sustain.json",
) -> None:
    """Measure every place and number of workers in turn, and print what a coordinator sustains."""
    use_own_stores()
    repeats = SHORT_REPEATS if short else REPEATS
    workers = SHORT_WORKERS if short else WORKERS
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with _places() as places, tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            for count in workers:
                for place, (environment, servers) in places.items():
                    root = Path(folder, f"{place}-{count}-{repeat}".replace(" ", "-"))
                    rates = in_a_fresh_process(_rates, root, environment, servers, count)
                    found.setdefault((place, count), []).append(rates)
                    print(f"{place}, {count} workers: {1000 / rates['trial_wall_ms']:.1f} trials/s", file=sys.stderr)
    rows = [{"place": place, "workers": count, "measured": each} for (place, count), each in found.items()]
    publish("sustain", [_table(found)], _lines(found), {"rows": rows}, repeats, output)


@contextmanager
def _places() -> Iterator[dict[str, tuple[dict[str, str], tuple[int, ...]]]]:
    """Start the servers and yield, of each place, what the environment says and the processes of its servers."""
    from benchmarks.servers import Postgres, TeamMlflow, has_postgres, server_folder

    if not has_postgres():
        print("There is no PostgreSQL here (Debian's package postgresql): SQLite alone is measured.", file=sys.stderr)
        yield {EMBEDDED: ({}, ())}
        return
    with ExitStack() as stack:
        folder = stack.enter_context(server_folder())
        postgres = Postgres(folder, is_careful=True)
        stack.callback(postgres.stop)
        postgres.start()
        postgres.make_databases()
        mlflow = TeamMlflow(folder, postgres)
        stack.callback(mlflow.stop)
        mlflow.start()
        assert mlflow.make_account().returncode == 0
        trial_storage = {"OPTUNA_STORAGE": postgres.address(), "PGPASSWORD": postgres.passwords["optuna"]}
        tracking = {
            "MLFLOW_TRACKING_URI": mlflow.address,
            "MLFLOW_TRACKING_USERNAME": mlflow.account,
            "MLFLOW_TRACKING_PASSWORD": mlflow.password,
        }
        yield {EMBEDDED: ({}, ()), SERVERS: (trial_storage | tracking, (postgres.pid, mlflow.pid))}


def _rates(root: Path, environment: Mapping[str, str], servers: Sequence[int], workers: int) -> dict[str, float]:
    """Run trials in a study of their own, and tell what a trial takes from what its reports take, in milliseconds."""
    os.environ |= environment
    from benchmarks.scale import Clocked
    from benchmarks.toy_study import open_toy_study

    study = open_toy_study(root, EPOCHS, name=root.name)
    # Libraries and tables are there once something was written.
    study.run(2, _executor(1))
    trials = _trials(workers)
    # All that a report makes the coordinator do.
    times: Times = defaultdict(list)
    engine, tracker = Clocked(study.engine, ("report",), times), Clocked(study.tracker, ("log_epochs",), times)
    of_servers, wall, processor = _processor_seconds(servers), time.perf_counter(), time.process_time()
    study.run(trials, _executor(workers), engine, tracker)
    spent = time.perf_counter() - wall, time.process_time() - processor
    rates = {"servers_ms": 1000 * (_processor_seconds(servers) - of_servers) / trials}
    for index, name in enumerate(("wall", "processor")):
        reports = sum(seconds[index] for calls in times.values() for seconds in calls)
        rates[f"report_{name}_ms"] = 1000 * reports / (trials * EPOCHS)
        rates[f"trial_{name}_ms"] = 1000 * (spent[index] - reports) / trials
    return rates


def _processor_seconds(servers: Sequence[int]) -> float:
    """Return the processor time that all processes below these have taken, those that ended included."""
    while True:
        below = [process for pid in servers for process in psutil.Process(pid).children(recursive=True)]
        try:
            # The four of psutil's first fields: of a process, and of its children that have ended.
            return float(sum(sum(process.cpu_times()[:4]) for process in below))
        except psutil.NoSuchProcess:  # It has ended meanwhile, and its parent has its time by now.
            continue


def _trials(workers: int) -> int:
    return max(FEWEST_TRIALS, workers)


def _executor(workers: int) -> "Executor":
    from benchmarks.toy_study import METRICS, TAGS
    from fashion_study.executors.executor import Event
    from fashion_study.testing.memory import MemoryExecutor
    from fashion_study.trial import AttemptLost, EpochReport

    class RisingExecutor(MemoryExecutor):
        """An executor that answers with as much as real workers; a later trial is always better: none is pruned."""

        def wait(self, timeout: float) -> list[Event]:
            return [self._risen(event) for event in super().wait(timeout)]

        def _risen(self, event: Event) -> Event:
            height = event.number * 1e-6
            match event:
                case EpochReport():
                    return replace(event, val_accuracy=height + event.epoch * 1e-8)
                case AttemptLost():
                    return event
            return replace(event, objective=height, metrics=METRICS, tags=TAGS)

    return RisingExecutor(workers)


def _table(found: Mapping[tuple[str, int], list[dict[str, float]]]) -> "Table":
    headings = ("workers", "trials/s", "reports/s", "processor: ms a trial", "ms a report", "servers: ms a trial", "n")
    title = "what one coordinator sustains: nothing but trials, without their reports, or nothing but reports; medians"
    table = table_of(title, *headings)
    for (place, count), measured in found.items():
        middle = {name: median(each[name] for each in measured) for name in measured[0]}
        table.add_row(
            place,
            str(count),
            f"{1000 / middle['trial_wall_ms']:.1f}",
            f"{1000 / middle['report_wall_ms']:.0f}",
            f"{middle['trial_processor_ms']:.1f}",
            f"{middle['report_processor_ms']:.1f}",
            f"{middle['servers_ms']:.0f}",
            str(len(measured)),
        )
    return table


def _lines(found: Mapping[tuple[str, int], list[dict[str, Any]]]) -> list[Line]:
    lines = []
    for (place, count), measured in found.items():
        trial, report = (median(each[f"{name}_wall_ms"] for each in measured) for name in ("trial", "report"))
        what = f"{place}, {count} workers"
        lines.append(Line(what, f"{1000 / trial:.1f} trials/s, {1000 / report:.0f} reports/s"))
    return lines


if __name__ == "__main__":
    run(main)
