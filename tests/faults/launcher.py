"""Start a command of the project in a process of its own that dies where a plan says.

Production code knows nothing of it. The process is forked from one that has the slow libraries already, and runs the
entry point's own `main`. Its workers are started as ever, most of them with a toy for a trainer.
"""

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.faults.commits import on_every_commit
from tests.faults.journal import JOURNAL, Entry, Journal, phase_at_the_end, read
from tests.faults.recording_worker import EVIDENCE, MODEL, STEP

ROOT = Path(__file__).parents[2]
SLOW_IMPORTS = [
    "experiments.doctor",
    "experiments.promote",
    "experiments.run_study",
    "fashion_study.doctor.context",
    "fashion_study.doctor.files",
    "fashion_study.doctor.studies",
    "fashion_study.doctor.registry",
    "fashion_study.study.retention",
    "fashion_study.promotion.promote",
    "fashion_study.study.reconcile",
    "fashion_study.study.session",
    "fashion_study.study.run",
    "fashion_study.study.summary",
    "fashion_study.tracking.runs",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking._model_registry.client",
    "mlflow.tracking._tracking_service.client",
    "sklearn.datasets",
    "tests.faults.launcher",
]
RECORDING_WORKER = "tests.faults.recording_worker"
# By how many hours the clock jumps whenever an attempt begins.
HOURS = "FAULTS_HOURS"
WORKER = "FAULTS_WORKER"
# What is going on while a function of the coordinator runs; the outermost one counts.
PHASES = (
    ("fashion_study.study.run", "open_session", "opening"),
    ("fashion_study.engines.engine:Engine", "ask", "ask"),
    ("fashion_study.study.proposals:Proposals", "begin", "ask"),
    ("fashion_study.engines.engine:Engine", "report", "epoch"),
    ("fashion_study.tracking.runs:StudyRuns", "log_epochs", "epoch"),
    ("fashion_study.study.proposals:Proposals", "settle", "tell"),
    ("fashion_study.study.run", "train_finalists", "finalists"),
    ("fashion_study.study.run", "register_challenger", "registration"),
    ("fashion_study.tracking.aliases", "_move", "alias"),
    ("fashion_study.promotion.promote", "_record", "decision"),
)


@dataclass(frozen=True)
class Plan:
    """Say when the process is to be killed with SIGKILL; without a word: never.

    Before (or after) its own commit number `commit`; where its worker takes its step number `step`; or `seconds`
    after it has begun its attempt number `attempt`, counted from this start.
    """

    commit: int | None = None
    is_after: bool = False
    step: int | None = None
    seconds: float | None = None
    attempt: int = 1


@dataclass(frozen=True)
class Life:
    """Show one start: how it ended, what a user was shown, and what the journal says that happened."""

    exit_code: int | None
    shown: str
    entries: list[Entry] = field(repr=False)

    @property
    def was_killed(self) -> bool:
        """Say whether the plan came true."""
        return self.exit_code == -signal.SIGKILL

    @property
    def phase(self) -> str:
        """Name what was going on at the end."""
        return phase_at_the_end(self.entries)

    @property
    def commits(self) -> int:
        """Count the commits of a process that came to its end."""
        return sum(int(entry["number"]) for entry in self.entries if entry["what"] == "commits")

    @property
    def steps(self) -> int:
        """Count the steps of its workers."""
        return sum(entry["what"] == "step" for entry in self.entries)

    def begun(self) -> list[Entry]:
        """Return the attempts that were handed to a worker."""
        return [entry for entry in self.entries if entry["what"] == "begun"]


@dataclass(frozen=True)
class Launcher:
    """Start commands whose lives are kept in `folder`; `model` is what toy workers log as every model of theirs."""

    folder: Path
    model: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    worker: str = RECORDING_WORKER

    def start(self, command: str, *words: object, plan: Plan | None = None) -> Life:
        """Run `python -m experiments.COMMAND WORDS` with its plan, and wait for its end."""
        with self.living(command, *words, plan=plan) as (process, life):
            process.join()
            return life()

    @contextmanager
    def living(
        self, command: str, *words: object, plan: Plan | None = None
    ) -> Iterator[tuple[BaseProcess, Callable[[], Life]]]:
        """Give the process of a command that was just started, and what tells of it so far."""
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / f"life-{len(list(self.folder.iterdir())):03d}"
        place.mkdir()
        context = get_context("forkserver")
        context.set_forkserver_preload(SLOW_IMPORTS)
        environment = {
            **self.environment,
            JOURNAL: str(place / "journal"),
            MODEL: str(self.model),
            WORKER: self.worker,
        }
        order = (command, [str(word) for word in words], place, plan or Plan(), environment)
        process = context.Process(target=_live, args=order)
        process.start()
        try:
            yield process, lambda: Life(process.exitcode, _shown(place), read(place / "journal"))
        finally:
            process.kill()
            process.join()


def _shown(place: Path) -> str:
    return "".join(path.read_text() for path in (place / "out", place / "err") if path.exists())


def _live(command: str, words: list[str], place: Path, plan: Plan, environment: Mapping[str, str]) -> None:
    """Be the process of a command."""
    from experiments._entry import run
    from fashion_study.doctor import files
    from fashion_study.executors import local

    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    # Wide enough for a table's cells to stay in one line each.
    os.environ |= {
        **environment,
        STEP: str(plan.step or 0),
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
        "COLUMNS": "400",
    }
    os.environ[EVIDENCE] = " ".join(files.EVIDENCE)
    journal = Journal(place / "journal", "coordinator")
    local.WORKER_MODULE = environment[WORKER]
    if environment[WORKER] == RECORDING_WORKER:
        # Seconds of every start, and of no importance to any promise.
        _replace("fashion_study.study.figures", "study_figures", lambda _: iter(()))
    _watch_phases(journal)
    _watch_results(journal)
    clock, hours = _Clock(plan), float(environment.get(HOURS, "0"))

    def begin(_: Any, spec: Any) -> None:
        journal.note("begun", trial=spec.number, attempt=spec.attempt, repeat=spec.repeat)
        clock.begin()
        if hours:
            _jump(hours)

    _around("fashion_study.executors.local:LocalExecutor", "submit", before=begin)
    commits = _Commits(plan)
    on_every_commit(commits.before, commits.after)
    sys.argv = [command, *words]
    try:
        run(importlib.import_module(f"experiments.{command}").main)
    finally:
        journal.note("commits", number=commits.count)


class _Commits:
    """Count commits, and die at the one that the plan names."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.count = 0

    def before(self) -> None:
        self.count += 1
        if self.count == self._plan.commit and not self._plan.is_after:
            _die()

    def after(self) -> None:
        if self.count == self._plan.commit:
            _die()


class _Clock:
    """Die some time after an attempt has begun."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._begun = 0

    def begin(self) -> None:
        self._begun += 1
        if self._plan.seconds is not None and self._begun == self._plan.attempt:
            threading.Timer(self._plan.seconds, _die).start()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _jump(hours: float) -> None:
    """Set the time of day, as far as Python asks `time.time` for it; it jumps again with every attempt."""
    real = time.time
    time.time = lambda: real() + 3600 * hours


def _watch_phases(journal: Journal) -> None:
    for owner, name, phase in PHASES:
        _inside(owner, name, partial(journal.during, phase))


def _watch_results(journal: Journal) -> None:
    """Note what the trial storage has taken in: from there on a result is acknowledged."""

    def note(_: Any, result: Any) -> None:
        journal.note("told", trial=result.number, state=result.state.value, objective=result.objective)

    _around("fashion_study.store.trials:TrialStorage", "close", after=note)


def _inside(owner: str, name: str, context: Callable[[], AbstractContextManager[None]]) -> None:
    _, function = _find(owner, name)

    @wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        with context():
            return function(*args, **options)

    _replace(owner, name, wrapped)


def _around(
    owner: str,
    name: str,
    before: Callable[..., None] = lambda *_: None,
    after: Callable[..., None] = lambda *_: None,
) -> None:
    _, function = _find(owner, name)

    @wraps(function)
    def wrapped(*args: Any) -> Any:
        before(*args)
        answer = function(*args)
        after(*args)
        return answer

    _replace(owner, name, wrapped)


def _replace(owner: str, name: str, by: Callable[..., Any]) -> None:
    holder, _ = _find(owner, name)
    setattr(holder, name, by)


def _find(owner: str, name: str) -> tuple[Any, Callable[..., Any]]:
    module, _, attribute = owner.partition(":")
    holder: Any = importlib.import_module(module)
    holder = getattr(holder, attribute) if attribute else holder
    return holder, getattr(holder, name)
