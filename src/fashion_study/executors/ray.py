"""Workers on a Ray cluster: a supervisor for each, as an actor, with the worker process as its child."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from fashion_study.errors import StudyError
from fashion_study.executors.cluster import Cluster, Resources
from fashion_study.executors.executor import Event
from fashion_study.executors.supervisor import Answer, Supervisor, WorkerContext
from fashion_study.trial import AttemptLost, EpochReport, ProbeResult, TrialSpec, WorkerFailed

# How often the cluster is looked at again, and after how long without any worker that is said.
LOOK_SECONDS = 2.0
NO_WORKER_WARNING_SECONDS = 20.0
TICK_SECONDS = 0.5
STOP_SECONDS = 5.0
FAILED_STARTS = 3
LOST = "its supervisor or the node was lost"


@dataclass(eq=False)
class _RayWorker:
    """Hold a supervisor, its one call under way, and what its worker does.

    `call` is None while nothing is asked of it, and while its report waits for an answer; `taken` is done when its
    worker has the attempt.
    """

    number: int
    actor: Any
    call: Any = None
    is_ready: bool = False
    spec: TrialSpec | None = None
    taken: Any = None

    def assign(self, spec: TrialSpec) -> None:
        """Hand over an attempt, and listen."""
        self.spec = spec
        self.taken = self.actor.submit.remote(spec)
        self.call = self.actor.follow.remote()

    def has_taken(self) -> bool:
        """Say whether the supervisor had begun the attempt before it was lost."""
        with suppress(RayError):
            ray.get(self.taken, timeout=0)
            return True
        return False


class RayExecutor:
    """Keep a worker wherever the cluster has room for one, at most `workers`; one that is lost is asked for anew.

    `slots` counts those that are there: none for a while, where a cluster loses its last node.
    """

    def __init__(
        self,
        cluster: Cluster,
        worker_context: WorkerContext,
        needed: Resources,
        workers: int | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._cluster = cluster
        self._worker_context = worker_context
        self._needed = needed
        self._workers = workers
        self._warn = warn
        # A supervisor is not restarted by Ray: the trial must go back to waiting first.
        self._supervisor: Any = ray.remote(Supervisor).options(
            num_cpus=needed.cpus,
            num_gpus=needed.gpus,
            memory=needed.memory,
            scheduling_strategy=cluster.placing,
            max_restarts=0,
            max_task_retries=0,
        )
        worker_context.log_dir.mkdir(parents=True, exist_ok=True)
        self._ray_workers: list[_RayWorker] = []
        self._not_begun: deque[TrialSpec] = deque()
        self._failed_starts = 0
        self._look_at = 0.0
        self._without_workers_since: float | None = time.monotonic()
        self._follow_the_cluster()

    @property
    def slots(self) -> int:
        """Return how many attempts can run at once; it changes only in `wait`."""
        return sum(worker.is_ready for worker in self._ray_workers)

    def probe_precision(self, is_over: Callable[[], bool] = lambda: False) -> ProbeResult | None:
        """Let the first worker that is there measure both precisions; return None if `is_over` before that is known."""
        asked: _RayWorker | None = None
        while not is_over():
            if asked not in self._ray_workers and (asked := self._free()) is not None:
                asked.call = asked.actor.probe.remote()
            for message in self._wait(TICK_SECONDS):
                if isinstance(message, ProbeResult):
                    return message
        return None

    def submit(self, spec: TrialSpec) -> None:
        """Hand an attempt to a worker that is free."""
        worker = self._free()
        assert worker is not None
        worker.assign(spec)

    def wait(self, timeout: float) -> list[Event]:
        """Return what the workers have sent, after at most `timeout` seconds; perhaps nothing."""
        return self._wait(timeout)

    def answer(self, report: EpochReport, *, prune: bool) -> None:
        """Answer an epoch's report; the worker goes on, or ends the trial there."""
        key = (report.number, report.attempt)
        for worker in self._ray_workers:
            if worker.spec is not None and worker.spec.key == key:
                worker.call = worker.actor.answer.remote(report, prune=prune)

    def stop(self) -> None:
        """End every supervisor, and with it its worker, whatever it is doing."""
        calls = [worker.call for worker in self._ray_workers if worker.call is not None]
        for worker in self._ray_workers:
            ray.kill(worker.actor)
        self._ray_workers.clear()
        if calls:  # They end when their supervisors have.
            ray.wait(calls, num_returns=len(calls), timeout=STOP_SECONDS)

    def _free(self) -> _RayWorker | None:
        return next(
            (worker for worker in self._ray_workers if worker.is_ready and worker.spec is None and worker.call is None),
            None,
        )

    def _wait(self, timeout: float) -> list[Any]:
        self._follow_the_cluster()
        by_call = {worker.call: worker for worker in self._ray_workers if worker.call is not None}
        if not by_call:
            time.sleep(timeout)
            return []
        ray.wait(list(by_call), timeout=timeout)  # For the first; and then all that are there.
        answered, _ = ray.wait(list(by_call), num_returns=len(by_call), timeout=0)
        return [message for call in answered for message in self._receive(by_call[call])]

    def _follow_the_cluster(self) -> None:
        """Ask for as many supervisors as there is room for; Ray starts one when it finds a place."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        room = self._cluster.room(self._needed)
        wanted = self._workers or max(1, room)
        waiting = [worker for worker in self._ray_workers if not worker.is_ready]
        for worker in waiting[: max(0, len(self._ray_workers) - wanted)]:
            self._remove(worker)
        while len(self._ray_workers) < wanted:
            self._ray_workers.append(self._start())
        self._warn_without_workers(now)

    def _start(self) -> _RayWorker:
        taken = {worker.number for worker in self._ray_workers}
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        actor = self._supervisor.remote()
        # Not with the actor's making: what that takes is kept by the cluster, and what is sent to it is not.
        return _RayWorker(number, actor, actor.begin.remote(self._worker_context, f"ray-{number}"))

    def _warn_without_workers(self, now: float) -> None:
        if self.slots:
            self._without_workers_since = None
        elif self._without_workers_since is None:
            self._without_workers_since = now
        elif now - self._without_workers_since > NO_WORKER_WARNING_SECONDS:
            self._without_workers_since = float("inf")
            self._warn(
                f"no worker is there: the Ray cluster has no room for one that takes {self._needed}; waiting for it"
            )

    def _receive(self, worker: _RayWorker) -> list[Any]:
        call, worker.call = worker.call, None
        try:
            answer: Answer = ray.get(call)
        except RayTaskError:
            raise  # A mistake in the supervisor.
        except RayError as error:
            return self._reap(worker, error)
        if isinstance(answer, WorkerFailed):
            raise answer.error
        if not worker.is_ready:
            worker.is_ready, self._failed_starts = True, 0
        if any(not isinstance(message, EpochReport) for message in answer):
            worker.spec = None
        if worker.spec is None and self._not_begun:
            worker.assign(self._not_begun.popleft())
        return answer

    def _reap(self, worker: _RayWorker, error: RayError) -> list[Event]:
        """Let go of a supervisor that is lost, and end the attempt that was lost with it."""
        self._remove(worker)
        self._look_at = 0.0
        if not worker.is_ready:
            self._count_failed_start(error)
        if worker.spec is None:
            return []
        if not worker.has_taken():
            self._reassign(worker.spec)
            return []
        return [AttemptLost(*worker.spec.key, LOST)]

    def _reassign(self, spec: TrialSpec) -> None:
        """Give an attempt that nobody has begun to another worker, now or when there is one."""
        if (free := self._free()) is not None:
            free.assign(spec)
        else:
            self._not_begun.append(spec)

    def _remove(self, worker: _RayWorker) -> None:
        self._ray_workers.remove(worker)
        ray.kill(worker.actor)

    def _count_failed_start(self, error: RayError) -> None:
        self._failed_starts += 1
        if self._failed_starts > FAILED_STARTS:
            raise StudyError(
                f"Ray has lost {self._failed_starts} workers one after the other before they could begin: {error}\n"
                "Expected fashion-study, in the same version, in the Python of every node."
            )
