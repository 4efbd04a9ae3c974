"""Workers as child processes of the coordinator, on this machine."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil
from joblib import cpu_count

from fashion_study.errors import BadInputError, StudyError
from fashion_study.executors.executor import Event
from fashion_study.executors.fork_server import ForkedProcess, ForkServer, start
from fashion_study.executors.memory import OomWatch, available_memory
from fashion_study.libraries import worker_environment
from fashion_study.trial import (
    AttemptLost,
    EpochReport,
    FailReason,
    ProbeOrder,
    ProbeResult,
    TrialResult,
    TrialSpec,
    TrialState,
    WorkerFailed,
    WorkerReady,
    WorkerSettings,
    WorkerStarted,
)

# Started by its name, so that TensorFlow is never imported here.
WORKER_MODULE = "fashion_study.worker.process"

STOP_SECONDS = 5.0
FAILED_STARTS = 3
FAILED_PROBES = 3
BYTES_PER_WORKER = 1.5 * 2**30
# TensorFlow keeps some 3 MiB of each trial (docs/performance.md): so a worker stays below BYTES_PER_WORKER. A new one
# takes a second where it is forked, ten where it imports TensorFlow itself.
ATTEMPTS_PER_FORK, ATTEMPTS_PER_WORKER = 10, 50
# A busy machine imports TensorFlow in a minute or two; a worker that takes longer than this hangs.
START_SECONDS = 600.0
SAMPLE_SECONDS = 0.5
# While the coordinator itself is blocked (a busy store, SIGSTOP), no attempt is charged for more than this.
LONGEST_TICK = 5.0
# The kernel kills between two samples: of a worker that was so near to its limit, for its memory.
NEAR_THE_LIMIT = 0.9
# A process keeps what an attempt has freed. Where that is more than this share of the memory below the limit, the next
# attempt gets a new process: it would be charged for memory that another one took.
LEFT_OVER = 0.5
# The index of a GPU, empty for a part of one, and its UUID, as nvidia-smi lists them.
GPU = re.compile(r"^(?:GPU (\d+)| +MIG).*\(UUID: (\S+)\)", re.MULTILINE)


@dataclass(eq=False)
class _Worker:
    """A worker process and its attempt. `clock` counts the seconds since its start, then since its attempt began."""

    slot: int
    process: subprocess.Popen[bytes] | ForkedProcess
    connection: Connection
    log: Path
    attempts_left: int
    spec: TrialSpec | None = None
    is_ready: bool = False
    clock: float = 0.0
    epochs: int = 0
    memory: int = 0
    memory_at_start: int = 0

    def assign(self, spec: TrialSpec) -> None:
        """Send an attempt; a worker that still imports has not begun it."""
        self.spec = spec
        self.epochs = 0
        self.attempts_left -= 1
        if self.is_ready:
            self.clock = 0.0
        self.send(spec)

    def send(self, message: object) -> None:
        # A worker that has died is noticed where its answer is read.
        with suppress(OSError):
            self.connection.send(message)

    def failure(self, reason: FailReason, message: str) -> TrialResult:
        """Return the failed result of the attempt, in the worker's place."""
        assert self.spec is not None
        return TrialResult(
            *self.spec.key, TrialState.FAILED, self.epochs, reason=reason, message=message, seconds=self.clock
        )

    def end(self) -> None:
        """Kill the process and wait for it."""
        self.connection.close()
        self.process.kill()  # SIGKILL reaches a stopped process too.
        self.process.wait()


class LocalExecutor:
    """Executor with `workers` processes on this machine; one that dies or breaks a limit is replaced."""

    def __init__(self, settings: WorkerSettings, workers: int, log_dir: Path, module: str | None = None) -> None:
        self._settings = settings
        self._module = module or WORKER_MODULE
        self._log_dir = log_dir
        log_dir.mkdir(parents=True, exist_ok=True)
        self._gpus = visible_gpus()
        self._server: ForkServer | None = None
        self._blamed: ForkServer | None = None
        self._failed_starts = 0
        self._oom = OomWatch()
        self._clocked = self._sampled = time.monotonic()
        # Spread over time, so that not all of them are replaced at once.
        lives = (self._most_attempts * (workers - slot) // workers for slot in range(workers))
        self._workers = [self._start(slot, max(1, life)) for slot, life in enumerate(lives)]

    @property
    def slots(self) -> int:
        """Return how many attempts can run at once."""
        return len(self._workers)

    def probe(self, order: ProbeOrder, is_over: Callable[[], bool] = lambda: False) -> ProbeResult | None:
        """Let the first worker measure how fast it trains; return None if `is_over` says so before.

        Raises:
            StudyError: the worker ended at each of several tries.
        """
        asked: _Worker | None = None
        ended = 0
        while not is_over():
            if self._workers[0] is not asked:  # At first, and when it has died: its successor is asked again.
                ended += asked is not None and asked.is_ready  # Failed starts are counted elsewhere.
                if ended == FAILED_PROBES:
                    raise StudyError(
                        f"{ended} worker processes ended while they measured which precision trains faster. Expected "
                        "one to tell. Name one with --precision, or give workers more memory with --worker-memory. "
                        f"What they printed is in {self._workers[0].log}."
                    )
                asked = self._workers[0]
                asked.send(order)
            for message in self.wait(SAMPLE_SECONDS):
                if isinstance(message, ProbeResult):
                    return message
        return None

    def submit(self, spec: TrialSpec) -> None:
        """Begin an attempt on a free worker; one that still imports begins it when it is ready."""
        self._run_clocks()
        for worker in list(self._workers):
            if worker.spec is None and worker.is_ready and worker.process.poll() is not None:
                self._reap(worker)  # It has died while it was idle.
        free = (worker for worker in self._workers if worker.spec is None)
        # A worker that is ready, if there is one.
        min(free, key=lambda worker: not worker.is_ready).assign(spec)

    def wait(self, timeout: float) -> list[Any]:
        """Return what the workers have sent, after at most `timeout` seconds; perhaps nothing.

        The limits are checked here: a worker that breaks one is replaced, and its attempt ends as failed.
        """
        by_connection = {worker.connection: worker for worker in self._workers}
        ready = wait(list(by_connection), timeout)
        self._run_clocks()
        senders = [by_connection[connection] for connection in ready if isinstance(connection, Connection)]
        messages = [message for worker in senders for message in self._receive(worker)]
        if self._clocked - self._sampled >= SAMPLE_SECONDS:
            self._sampled = self._clocked
            self._oom.look()
            for worker in self._workers:
                # Of a worker that has just ended, the last sample may explain its end.
                worker.memory = self._memory_of(worker) or worker.memory
        # A copy: workers that break a limit are replaced meanwhile.
        return messages + [event for worker in list(self._workers) for event in self._check_limits(worker)]

    def answer(self, report: EpochReport, *, prune: bool) -> None:
        """Answer an epoch's report; the worker trains the next epoch, or ends the trial as pruned."""
        key = (report.number, report.attempt)
        for worker in self._workers:
            if worker.spec is not None and worker.spec.key == key:
                worker.send(prune)

    def close(self) -> None:
        """End every worker, whatever it is doing; a worker ends by itself when its connection closes."""
        for worker in self._workers:
            worker.connection.close()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self._workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            worker.end()
        if self._server is not None and self._server.is_alive:
            self._server.give_back()
            self._server = None

    @property
    def _forks(self) -> bool:
        """Return whether workers are forked: a process that has loaded TensorFlow is not everywhere forked safely."""
        return not self._gpus and sys.platform == "linux"

    @property
    def _most_attempts(self) -> int:
        return ATTEMPTS_PER_FORK if self._forks else ATTEMPTS_PER_WORKER

    def _start(self, slot: int, attempts: int | None = None) -> _Worker:
        ours, theirs = Pipe()
        environment = worker_environment()
        log = self._log_dir / f"worker-{slot}.log"
        with theirs, log.open("ab") as output:
            process = self._start_process(slot, theirs, environment, output.fileno())
        with suppress(OSError):  # Of a worker that cannot be started the end is noticed where its messages are read.
            ours.send(self._settings)
        return _Worker(slot, process, ours, log, attempts or self._most_attempts)

    def _start_process(
        self, slot: int, pipe: Connection, environment: dict[str, str], log: int
    ) -> subprocess.Popen[bytes] | ForkedProcess:
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        if not self._forks:
            return start(self._module, "work", pipe, environment, log)
        if self._server is None or not self._server.is_alive:
            self._server = ForkServer.borrow(self._module, environment, log)
        return self._server.fork(pipe, environment, self._settings, log)

    def _receive(self, worker: _Worker) -> list[Any]:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            return self._reap(worker)
        match message:
            case WorkerFailed():
                raise message.error
            case WorkerStarted() | WorkerReady():
                self._begin(worker, message)
                return []
            case EpochReport():
                worker.epochs = message.epoch
            case TrialResult() | AttemptLost():
                if isinstance(message, TrialResult):
                    message = replace(message, seconds=worker.clock)
                worker.spec = None
                if worker.attempts_left <= 0 or self._keeps_memory(worker):
                    self._replace(worker)
        return [message]

    def _begin(self, worker: _Worker, message: WorkerStarted | WorkerReady) -> None:
        if isinstance(message, WorkerReady):
            self._failed_starts = 0
            worker.is_ready, worker.clock = True, 0.0
            worker.memory_at_start = self._memory_of(worker)
        elif isinstance(worker.process, ForkedProcess):
            worker.process.pid = message.pid

    def _reap(self, worker: _Worker) -> list[Event]:
        """Replace a dead worker, and end the attempt that died with it."""
        code = worker.process.wait()
        if not worker.is_ready:
            # A signal comes from outside; a worker that ends by itself before it is ready will do so again.
            self._count_failed_start(worker, f"exit code {code}", is_certain=code >= 0)
        self._replace(worker)
        if worker.spec is None or not worker.is_ready:
            return []
        limit = self._settings.worker_memory
        is_near_limit = limit is not None and worker.memory >= NEAR_THE_LIMIT * limit
        if code == -signal.SIGKILL and (self._oom.explains_a_kill() or is_near_limit):
            return [worker.failure(FailReason.OOM, f"The kernel killed the worker for its memory{_last_seen(worker)}.")]
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return [AttemptLost(*worker.spec.key, cause)]

    def _memory_of(self, worker: _Worker) -> int:
        """Return the bytes that a worker has in RAM, 0 for one that has ended or not begun.

        Near the limit, without those that it shares with its fork server, which take milliseconds to count.
        """
        if worker.process.pid is None:
            return 0
        try:
            process = psutil.Process(worker.process.pid)
            memory = int(process.memory_info().rss)
            limit = self._settings.worker_memory
            return memory if limit is None or memory < NEAR_THE_LIMIT * limit else int(process.memory_full_info().uss)
        except psutil.Error:
            return 0

    def _keeps_memory(self, worker: _Worker) -> bool:
        if (limit := self._settings.worker_memory) is None:
            return False
        kept = self._memory_of(worker) - worker.memory_at_start
        return kept > LEFT_OVER * (limit - worker.memory_at_start)

    def _replace(self, worker: _Worker) -> None:
        worker.end()
        successor = self._start(worker.slot)
        self._workers[self._workers.index(worker)] = successor
        if worker.spec is not None and not worker.is_ready:
            successor.assign(worker.spec)  # No worker has begun it.

    def _run_clocks(self) -> None:
        """Advance the clocks to now, before they are read or set."""
        now = time.monotonic()
        for worker in self._workers:
            worker.clock += min(now - self._clocked, LONGEST_TICK)
        self._clocked = now

    def _check_limits(self, worker: _Worker) -> list[Event]:
        """Replace a worker that breaks a limit, and end its attempt."""
        seconds, memory = self._settings.trial_timeout, self._settings.worker_memory
        failure = None
        if memory is not None and worker.memory > memory:
            if not worker.is_ready:
                raise BadInputError(
                    f"A worker takes {worker.memory / 2**20:,.0f} MiB before it trains anything; --worker-memory "
                    f"allows {memory / 2**20:,.0f} MiB. Expected room for TensorFlow, the images and a trial: try 2G."
                )
            failure = FailReason.OOM, f"The worker took more than --worker-memory allows{_last_seen(worker)}."
        if not worker.is_ready:
            if worker.clock > START_SECONDS:
                worker.end()
                self._count_failed_start(worker, f"not ready after {START_SECONDS:.0f} s", is_certain=False)
                self._replace(worker)
            return []
        if worker.spec is not None and seconds is not None and worker.clock > seconds:
            failure = FailReason.TIMEOUT, f"The trial took longer than the {seconds:g} s of --trial-timeout."
        if failure is None:
            return []
        self._replace(worker)
        return [worker.failure(*failure)] if worker.spec is not None else []

    def _count_failed_start(self, worker: _Worker, how: str, *, is_certain: bool) -> None:
        server = worker.process.server if isinstance(worker.process, ForkedProcess) else None
        if server is not None and not server.is_alive:
            if server is self._blamed:
                return  # All that it was to fork have ended with it: one failed start.
            self._blamed = server
        self._failed_starts += 1
        if is_certain or self._failed_starts > FAILED_STARTS:
            raise StudyError(
                f"A worker process ended before it was ready ({how}). "
                f"Expected it to import TensorFlow and load the data. What it printed is in {worker.log}."
            )


def _last_seen(worker: _Worker) -> str:
    return f" ({worker.memory / 2**20:,.0f} MiB were seen)" if worker.memory else ""


def default_workers() -> int:
    """Return one worker per GPU; without one, one per core that this process may use, as memory allows."""
    if gpus := visible_gpus():
        return len(gpus)
    return max(1, min(int(cpu_count()), int(available_memory() // BYTES_PER_WORKER)))


def threads_per_worker(workers: int) -> int:
    """Share the usable cores among the workers, at least one thread each."""
    return max(1, int(cpu_count()) // workers)


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that are there and that this process may use, without importing TensorFlow."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):  # Without an NVIDIA GPU there is no such program.
        return []
    there = GPU.findall(answer.stdout) if answer.returncode == 0 else []
    if chosen is None:
        return [index for index, _ in there if index]

    def is_there(name: str) -> bool:
        begins = name.startswith(("GPU-", "MIG-"))
        return any(name == index or (begins and uuid.startswith(name)) for index, uuid in there)

    # CUDA sees those before the first name that is of none.
    return list(takewhile(is_there, (name.strip() for name in chosen.split(",") if name.strip())))
