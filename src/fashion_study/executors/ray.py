"""Workers on a Ray cluster: for each an actor, its supervisor, with the worker process as its child."""

import itertools
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from fashion_study.data.catalog import locate
from fashion_study.errors import StudyError
from fashion_study.executors.cluster import Cluster, Resources
from fashion_study.executors.executor import Event
from fashion_study.executors.local import FAILED_STARTS, STOP_SECONDS, LocalExecutor
from fashion_study.trial import AttemptLost, EpochReport, ProbeOrder, ProbeResult, TrialSpec, WorkerSettings

# How often the size of the cluster is looked up, and after how long without any worker there is a warning.
LOOK_SECONDS = 2.0
NO_WORKER_WARNING_SECONDS = 20.0
TICK_SECONDS = 0.5
LOST = "its supervisor or the node was lost"


@dataclass(frozen=True)
class WorkerContext:
    """Everything that a worker needs, on whichever machine.

    `environment` takes precedence over that of the node, secrets included. `log_dir` is the coordinator's; a node
    without it keeps its logs in a folder of its own.
    """

    settings: WorkerSettings
    log_dir: Path
    worker_module: str
    environment: Mapping[str, str] = field(repr=False)


@contextmanager
def _naming_the_machine() -> Iterator[None]:
    try:
        yield
    except StudyError as error:
        raise type(error)(f"On {platform.node()}: {error}") from error


class Supervisor:
    """Owner of one worker process on its machine, with the limits and the replacement of `LocalExecutor`.

    Each method returns when there is news.
    """

    @_naming_the_machine()
    def begin(self, context: WorkerContext, name: str) -> list[Any]:
        """Start the worker process; `name` distinguishes this supervisor from the others of its study."""
        os.environ.update(context.environment)
        log_dir = context.log_dir if context.log_dir.is_dir() else Path(mkdtemp(prefix="fashion-study-logs-"))
        source = context.settings.source
        if source.directory is not None and not source.directory.is_dir():
            source = replace(source, directory=locate(source.name).directory)  # Where this machine has the images.
        checkpoints = context.settings.checkpoints
        shared = checkpoints if checkpoints is not None and checkpoints.is_dir() else None
        settings = replace(context.settings, source=source, checkpoints=shared)
        self._executor = LocalExecutor(settings, 1, log_dir / name, context.worker_module)
        return []

    @_naming_the_machine()
    def probe(self, order: ProbeOrder) -> list[Any]:
        """Measure how fast this machine trains."""
        return [self._executor.probe(order)]

    def submit(self, spec: TrialSpec) -> None:
        """Begin an attempt; when this returns, it has begun."""
        self._executor.submit(spec)

    @_naming_the_machine()
    def follow(self) -> list[Any]:
        """Return what the running attempt has sent, as soon as there is anything."""
        while not (events := self._executor.wait(TICK_SECONDS)):
            pass
        return events

    def answer(self, report: EpochReport, *, prune: bool) -> list[Any]:
        """Answer an epoch's report, and return what the attempt sends next."""
        self._executor.answer(report, prune=prune)
        return self.follow()


@dataclass(eq=False)
class _RayWorker:
    """A supervisor, the one call to it that is under way, and the attempt of its worker.

    `call` is None while the worker is idle, and while its report waits for an answer; `submitted` is done when the
    worker has begun the attempt.
    """

    actor: Any
    call: Any = None
    is_ready: bool = False
    spec: TrialSpec | None = None
    submitted: Any = None

    def assign(self, spec: TrialSpec) -> None:
        """Submit an attempt and follow it."""
        self.spec = spec
        self.submitted = self.actor.submit.remote(spec)
        self.call = self.actor.follow.remote()


class RayExecutor:
    """Executor with a worker wherever the cluster has room for one, at most `workers`; a lost worker is replaced.

    `slots` counts those that are ready: none for a while, where a cluster loses its last node.
    """

    def __init__(
        self,
        cluster: Cluster,
        context: WorkerContext,
        resources: Resources,
        workers: int | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._cluster = cluster
        self._context = context
        self._resources = resources
        self._most_workers = workers
        self._warn = warn
        # Not restarted by Ray: the trial must be requeued first.
        self._supervisor: Any = ray.remote(Supervisor).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            memory=resources.memory,
            scheduling_strategy=cluster.placing,
            max_restarts=0,
            max_task_retries=0,
        )
        context.log_dir.mkdir(parents=True, exist_ok=True)
        self._workers: list[_RayWorker] = []
        self._numbers = itertools.count()
        # Attempts whose worker was lost before it had begun them.
        self._unassigned: deque[TrialSpec] = deque()
        self._failed_starts = 0
        self._look_at = 0.0
        self._warn_at = time.monotonic() + NO_WORKER_WARNING_SECONDS
        self._follow_the_cluster()

    @property
    def slots(self) -> int:
        """Return how many attempts can run at once; it changes only in `wait`."""
        return sum(worker.is_ready for worker in self._workers)

    def probe(self, order: ProbeOrder, is_over: Callable[[], bool] = lambda: False) -> ProbeResult | None:
        """Let the first worker that is ready measure how fast it trains; return None if `is_over` says so before."""
        asked: _RayWorker | None = None
        while not is_over():
            if asked not in self._workers and (asked := self._free()) is not None:
                asked.call = asked.actor.probe.remote(order)
            for message in self.wait(TICK_SECONDS):
                if isinstance(message, ProbeResult):
                    return message
        return None

    def submit(self, spec: TrialSpec) -> None:
        """Begin an attempt on a free worker."""
        worker = self._free()
        assert worker is not None
        worker.assign(spec)

    def wait(self, timeout: float) -> list[Any]:
        """Return what the workers have sent, after at most `timeout` seconds; perhaps nothing."""
        self._follow_the_cluster()
        while self._unassigned and (free := self._free()) is not None:
            free.assign(self._unassigned.popleft())
        by_call = {worker.call: worker for worker in self._workers if worker.call is not None}
        if not by_call:
            time.sleep(timeout)
            return []
        ray.wait(list(by_call), timeout=timeout)  # For the first one; then take all that have answered.
        answered, _ = ray.wait(list(by_call), num_returns=len(by_call), timeout=0)
        return [message for call in answered for message in self._receive(by_call[call])]

    def answer(self, report: EpochReport, *, prune: bool) -> None:
        """Answer an epoch's report; the worker trains the next epoch, or ends the trial as pruned."""
        key = (report.number, report.attempt)
        for worker in self._workers:
            if worker.spec is not None and worker.spec.key == key:
                worker.call = worker.actor.answer.remote(report, prune=prune)

    def close(self) -> None:
        """End every supervisor and its worker, whatever they are doing."""
        calls = [worker.call for worker in self._workers if worker.call is not None]
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()
        if calls:  # They end when their supervisors have.
            ray.wait(calls, num_returns=len(calls), timeout=STOP_SECONDS)

    def _free(self) -> _RayWorker | None:
        free = (worker for worker in self._workers if worker.is_ready and worker.spec is None and worker.call is None)
        return next(free, None)

    def _follow_the_cluster(self) -> None:
        """Create as many supervisors as there is room for; Ray starts each when it finds a node for it.

        Warn once, while no worker is ready for long.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        room = self._cluster.room(self._resources)
        wanted = self._most_workers or max(1, room)
        waiting = [worker for worker in self._workers if not worker.is_ready]
        for worker in waiting[: max(0, len(self._workers) - wanted)]:
            self._remove(worker)
        while len(self._workers) < wanted:
            actor = self._supervisor.remote()
            # Not an argument of the actor's constructor: the cluster keeps those, and no other arguments.
            call = actor.begin.remote(self._context, f"ray-{next(self._numbers)}")
            self._workers.append(_RayWorker(actor, call))
        if self.slots:
            self._warn_at = now + NO_WORKER_WARNING_SECONDS
        elif now > self._warn_at:
            self._warn_at = float("inf")
            self._warn(f"the Ray cluster has no room for a worker that takes {self._resources}; waiting for it")

    def _receive(self, worker: _RayWorker) -> list[Any]:
        call, worker.call = worker.call, None
        try:
            answer: list[Any] = ray.get(call)
        except RayTaskError as error:
            if isinstance(error.cause, StudyError):
                raise error.cause from None
            raise  # A mistake in the supervisor.
        except RayError as error:
            return self._reap(worker, error)
        if not worker.is_ready:
            worker.is_ready, self._failed_starts = True, 0
        if any(not isinstance(message, EpochReport) for message in answer):
            worker.spec = None
        return answer

    def _reap(self, worker: _RayWorker, error: RayError) -> list[Event]:
        """Remove a supervisor that is lost, and end the attempt that was lost with it."""
        self._remove(worker)
        self._look_at = 0.0
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts > FAILED_STARTS:
                raise StudyError(
                    f"Ray has lost {self._failed_starts} workers one after the other before they could begin: {error}\n"
                    "Expected fashion-study, in the same version, in the Python of every node."
                )
        if worker.spec is not None:
            with suppress(RayError):
                ray.get(worker.submitted, timeout=0)  # The attempt has begun.
                return [AttemptLost(*worker.spec.key, LOST)]
            self._unassigned.append(worker.spec)
        return []

    def _remove(self, worker: _RayWorker) -> None:
        self._workers.remove(worker)
        ray.kill(worker.actor)
