"""What stands beside a worker on another machine: it keeps one worker process there, as the coordinator does here."""

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from fashion_study.data.catalog import locate
from fashion_study.errors import StudyError
from fashion_study.executors.local import Limits, LocalExecutor
from fashion_study.trial import DataSource, EpochReport, TrialSpec, WorkerFailed, WorkerSettings

TICK_SECONDS = 0.5

# What has happened since the last answer; or why no worker can do its work there.
Answer = list[Any] | WorkerFailed


@dataclass(frozen=True)
class WorkerContext:
    """Hold what a worker needs wherever it is.

    `environment` goes before that of the node, secrets included. `log_dir` is the coordinator's; a node that does not
    have it keeps its logs in a folder of its own.
    """

    settings: WorkerSettings
    limits: Limits
    log_dir: Path
    worker_module: str
    environment: Mapping[str, str] = field(repr=False)


class Supervisor:
    """Own one worker process, hold it to its limits and replace it; each method returns when there is news.

    A worker's death, its limits and its renewal are those of `LocalExecutor`, and so is its end: with this process.
    """

    def __init__(self) -> None:
        self._executor: LocalExecutor
        self._failed: WorkerFailed | None = None

    def begin(self, worker_context: WorkerContext, name: str) -> Answer:
        """Start the worker process; `name` tells this supervisor from the others of its study."""

        def start() -> list[Any]:
            os.environ.update(worker_context.environment)
            settings = replace(worker_context.settings, source=_found_here(worker_context.settings.source))
            log_dir = (
                worker_context.log_dir
                if worker_context.log_dir.is_dir()
                else Path(mkdtemp(prefix="fashion-study-logs-"))
            )
            self._executor = LocalExecutor(
                settings, 1, log_dir / name, worker_context.limits, worker_context.worker_module
            )
            return []

        return self._told(start)

    def probe(self) -> Answer:
        """Measure which precision trains faster on this machine."""
        return self._told(lambda: [self._executor.probe_precision()])

    def submit(self, spec: TrialSpec) -> Answer:
        """Begin an attempt; that this returns means that it is begun."""

        def assign() -> list[Any]:
            # Nobody has looked since the last attempt: a worker that died is replaced now, and the time is not charged.
            self._executor.wait(0)
            self._executor.submit(spec)
            return []

        return self._told(assign)

    def follow(self) -> Answer:
        """Return what the attempt that runs has sent, as soon as there is anything."""

        def listen() -> list[Any]:
            while not (events := self._executor.wait(TICK_SECONDS)):
                pass
            return list(events)

        return self._told(listen)

    def answer(self, report: EpochReport, *, prune: bool) -> Answer:
        """Answer an epoch's report, and return what the attempt sends next."""
        self._executor.answer(report, prune=prune)
        return self.follow()

    def _told(self, act: Callable[[], list[Any]]) -> Answer:
        """Return an error as an answer, to this call and all later ones; it says on which machine it happened."""
        if self._failed is None:
            try:
                return act()
            except StudyError as error:
                self._failed = WorkerFailed(type(error)(f"On {platform.node()}: {error}"))
        return self._failed


def _found_here(source: DataSource) -> DataSource:
    """Find the images on this machine where they do not lie in the coordinator's folder."""
    if source.directory is None or source.directory.is_dir():
        return source
    return replace(source, directory=locate(source.name).directory)
