"""How busy one coordinator keeps many workers.

`python -m benchmarks.busy` takes up a study of 10,000 toy trials and runs some more through the real coordinator,
engine, pruner, trial storage and tracker. The workers are simulated, in virtual time: a trial takes as long as is drawn
for it, and the clock runs on with the wall's while the coordinator works. Counted is the time between the moment when
every worker has its first trial and the one when the last trial begins.
"""

import heapq
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.growth import grow
from benchmarks.processes import in_a_fresh_process, use_own_stores
from benchmarks.results import FOLDER, Line, publish, table_of
from benchmarks.toy_study import METRICS, TAGS, open_toy_study
from experiments._entry import run
from fashion_study.config import PrunerName
from fashion_study.executors.executor import Event
from fashion_study.testing.memory import MemoryCheckpoints, MemoryExecutor
from fashion_study.testing.training import probed, toy_training
from fashion_study.trial import EpochReport, ProbeOrder, ProbeResult, TrialSpec

EPOCHS = 10
SEED_TRIALS = 16
# So many trials for each worker, one of which only fills it.
ROUNDS = 3
GOAL, GOAL_MS = "95 %", "60 ms"


@dataclass(frozen=True)
class Case:
    """So many workers, the shortest and the longest trial in seconds, and the pruner."""

    workers: int
    shortest: float
    longest: float
    pruner: PrunerName

    def __str__(self) -> str:
        return f"{self.workers:,} workers, trials of {self.shortest:.0f} to {self.longest:.0f} s, {self.pruner}"


CASES = tuple(Case(*workers, pruner) for workers in ((200, 5, 50), (1000, 120, 1200)) for pruner in ("none", "asha"))


def main(
    trials: Annotated[int, typer.Option(min=100, help="How many the study has already.")] = 10_000,
    workers: Annotated[int | None, typer.Option(help="The cases of so many workers; by default all.")] = None,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "busy.json",
) -> None:
    """Measure every case and print how busy its workers are and what a trial takes of the coordinator."""
    use_own_stores()
    rows: list[dict[str, Any]] = []
    table = table_of(f"from {trials:,} trials on", "busy", "ms a trial", "trials begun", "epochs")
    for case in (each for each in CASES if workers in (None, each.workers)):
        print(f"{case}: some minutes", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"case": str(case), **in_a_fresh_process(_measured, Path(folder), case, trials)})
        figures = rows[-1]
        table.add_row(
            str(case),
            f"{figures['busy']:.1%}",
            f"{figures['trial_ms']:.0f}",
            f"{figures['trials']:,}",
            f"{figures['epochs']:,}",
        )
    publish("busy", [table], _lines(rows), {"rows": rows, "trials": trials}, 1, output)


def _lines(rows: list[dict[str, Any]]) -> list[Line]:
    busy = [Line(f"{row['case']}: busy", f"{row['busy']:.1%}", GOAL) for row in rows]
    return busy + [
        Line(f"{row['case']}: coordinator for a trial", f"{row['trial_ms']:.0f} ms", GOAL_MS) for row in rows
    ]


def _measured(root: Path, case: Case, size: int) -> dict[str, float]:
    open_toy_study(root, EPOCHS, "random", "none").run(SEED_TRIALS, MemoryExecutor(2))
    grow(root, size)
    study = open_toy_study(root, EPOCHS, "tpe", case.pruner)
    workers = VirtualWorkers(case.workers, lambda number: random.Random(number).uniform(case.shortest, case.longest))
    checkpoints = MemoryCheckpoints.having(workers.curve)
    study.run(ROUNDS * case.workers, workers, checkpoints=checkpoints)
    return workers.figures()


@dataclass(frozen=True)
class _Moment:
    """A trial's beginning: the virtual time, and the seconds that the coordinator had worked."""

    now: float
    worked: float


class VirtualWorkers:
    """An executor whose workers take virtual time; what the coordinator does between two calls takes real time."""

    def __init__(self, slots: int, seconds: Callable[[int], float]) -> None:
        self.slots = slots
        self._seconds = seconds
        self._attempts: dict[int, tuple[TrialSpec, Generator[Any, bool | None, Any]]] = {}
        self._curves: dict[int, list[EpochReport]] = {}
        self._queue: list[tuple[float, int, Event]] = []
        self._order = itertools.count()
        self._trained: list[tuple[float, float]] = []
        self._begun: list[_Moment] = []
        self._now = self._worked = 0.0
        self._left = time.perf_counter()

    def probe(self, order: ProbeOrder, is_over: Callable[[], bool] = lambda: False) -> ProbeResult:  # noqa: ARG002
        """Return invented measurements."""
        return probed(order)

    def submit(self, spec: TrialSpec) -> None:
        """Begin an attempt."""
        with self._call():
            if not spec.resumes:
                self._begun.append(_Moment(self._now, self._worked))
            self._attempts[spec.number] = spec, toy_training(spec, None)
            self._train(spec.number, prune=None)

    def answer(self, report: EpochReport, *, prune: bool) -> None:
        """Go on with a trial, or end it."""
        with self._call():
            self._train(report.number, prune=prune)

    def wait(self, timeout: float) -> list[Event]:
        """Return what has happened by now; given time, wait for the next event."""
        events = []
        with self._call():
            if timeout > 0 and self._queue:
                self._now = max(self._now, self._queue[0][0])
            while self._queue and self._queue[0][0] <= self._now:
                events.append(heapq.heappop(self._queue)[2])
        return events

    def close(self) -> None:
        """Forget what runs."""
        self._queue.clear()

    def curve(self, spec: TrialSpec) -> list[EpochReport]:
        """Return the epochs that a trial has trained."""
        return self._curves.get(spec.number, [])

    def figures(self) -> dict[str, float]:
        """Return the busy share and what a trial took of the coordinator, while all workers had trials to begin."""
        first, last = self._begun[self.slots - 1], self._begun[-1]
        busy = sum(max(0.0, min(end, last.now) - max(begin, first.now)) for begin, end in self._trained)
        trials = len(self._begun) - self.slots
        return {
            "busy": busy / (self.slots * (last.now - first.now)),
            "trial_ms": 1000 * (last.worked - first.worked) / trials,
            "trials": trials,
            "epochs": len(self._trained),
        }

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Let the clock run on by what the coordinator has worked since the last call; this call takes no time."""
        worked = time.perf_counter() - self._left
        self._now += worked
        self._worked += worked
        yield
        self._left = time.perf_counter()

    def _train(self, number: int, *, prune: bool | None) -> None:
        spec, training = self._attempts[number]
        try:
            message = training.send(prune)
        except StopIteration as end:
            self._push(self._now, replace(end.value, metrics=METRICS, tags=TAGS))
            return
        # The epoch after which it was paused is reported again.
        is_new = message.epoch > spec.resumes
        ends = self._now + is_new * self._seconds(number) / spec.hyperparameters.epochs
        if is_new:
            self._curves.setdefault(number, []).append(message)
            self._trained.append((self._now, ends))
        self._push(ends, message)

    def _push(self, moment: float, event: Event) -> None:
        heapq.heappush(self._queue, (moment, next(self._order), event))


if __name__ == "__main__":
    run(main)
