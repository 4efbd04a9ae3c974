"""The supervisor of a worker on another machine: it keeps one worker process there, as the coordinator does here."""

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Concatenate, ParamSpec

from fashion_study.data.catalog import locate
from fashion_study.errors import StudyError
from fashion_study.executors.local import Limits, LocalExecutor
from fashion_study.trial import DataSource, EpochReport, TrialSpec, WorkerFailed, WorkerSettings

TICK_SECONDS = 0.5

# What has happened since the last answer; or why no worker can work there.
Answer = list[Any] | WorkerFailed
P = ParamSpec("P")


@dataclass(frozen=True)
class WorkerContext:
    """Everything that a worker needs, on whichever machine.

    `environment` takes precedence over that of the node, secrets included. `log_dir` is the coordinator's; a node
    without it keeps its logs in a folder of its own.
    """

    settings: WorkerSettings
    limits: Limits
    log_dir: Path
    worker_module: str
    environment: Mapping[str, str] = field(repr=False)


def _errors_as_answers(
    method: Callable[Concatenate["Supervisor", P], list[Any]],
) -> Callable[Concatenate["Supervisor", P], Answer]:
    """Return an error as the answer, to this call and all later ones; it names the machine where it happened."""

    @wraps(method)
    def answered(self: "Supervisor", /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        if self.failed is None:
            try:
                return method(self, *args, **kwargs)
            except StudyError as error:
                self.failed = WorkerFailed(type(error)(f"On {platform.node()}: {error}"))
        return self.failed

    return answered


class Supervisor:
    """Owner of one worker process, which it limits and replaces; each method returns when there is news.

    A worker's limits, its replacement and its end with this process are those of `LocalExecutor`.
    """

    def __init__(self) -> None:
        self._executor: LocalExecutor
        self.failed: WorkerFailed | None = None

    @_errors_as_answers
    def begin(self, context: WorkerContext, name: str) -> list[Any]:
        """Start the worker process; `name` distinguishes this supervisor from the others of its study."""
        os.environ.update(context.environment)
        log_dir = context.log_dir if context.log_dir.is_dir() else Path(mkdtemp(prefix="fashion-study-logs-"))
        settings = replace(context.settings, source=_located_here(context.settings.source))
        self._executor = LocalExecutor(settings, 1, log_dir / name, context.limits, context.worker_module)
        return []

    @_errors_as_answers
    def probe(self) -> list[Any]:
        """Measure which precision trains faster on this machine."""
        return [self._executor.probe_precision()]

    @_errors_as_answers
    def submit(self, spec: TrialSpec) -> list[Any]:
        """Begin an attempt; when this returns, it has begun."""
        # Not watched since the last attempt: a worker that died is replaced now, and the time is not charged.
        self._executor.wait(0)
        self._executor.submit(spec)
        return []

    @_errors_as_answers
    def follow(self) -> list[Any]:
        """Return what the running attempt has sent, as soon as there is anything."""
        while not (events := self._executor.wait(TICK_SECONDS)):
            pass
        return list(events)

    def answer(self, report: EpochReport, *, prune: bool) -> Answer:
        """Answer an epoch's report, and return what the attempt sends next."""
        self._executor.answer(report, prune=prune)
        return self.follow()


def _located_here(source: DataSource) -> DataSource:
    """Find the images on this machine where they do not lie in the coordinator's folder."""
    if source.directory is None or source.directory.is_dir():
        return source
    return replace(source, directory=locate(source.name).directory)
