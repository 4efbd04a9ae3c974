"""Workers as child processes of the coordinator, on this machine."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil
from joblib import cpu_count

from fashion_study.errors import StudyError
from fashion_study.executors.executor import AttemptLost, Event
from fashion_study.trial import (
    EpochReport,
    ProbeOrder,
    ProbeResult,
    TrialResult,
    TrialSpec,
    Verdict,
    WorkerFailed,
    WorkerReady,
    WorkerSettings,
)

# Started by its name, so that nothing of TensorFlow is ever imported here.
WORKER_MODULE = "fashion_study.training.worker"

# Freed tensors go back to the process, not to the kernel: with glibc's defaults every step maps and unmaps
# its activations anew, which costs 5 to 10 % of a step. No effect on other allocators.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
STOP_SECONDS = 5.0
FAILED_STARTS = 3
BYTES_PER_WORKER = 1.5 * 2**30


@dataclass(eq=False)
class _Worker:
    slot: int
    process: subprocess.Popen[bytes]
    connection: Connection
    log: Path
    spec: TrialSpec | None = None
    is_proven: bool = False  # It has answered once, so its start is not to blame when it dies.


class LocalExecutor:
    """Keep `workers` processes busy, replace one that dies, and end all of them with the coordinator."""

    def __init__(self, settings: WorkerSettings, workers: int, log_dir: Path) -> None:
        self._settings = settings
        self._log_dir = log_dir
        log_dir.mkdir(parents=True, exist_ok=True)
        self._gpus = visible_gpus()
        self._failed_starts = 0
        self._workers = [self._start(slot) for slot in range(workers)]

    @property
    def slots(self) -> int:
        """Return how many attempts can run at once."""
        return len(self._workers)

    def probe_precision(self) -> ProbeResult:
        """Let the first worker measure both precisions."""
        _send(self._workers[0], ProbeOrder())
        while True:
            worker = self._workers[0]
            for message in self._receive(worker):
                if isinstance(message, ProbeResult):
                    return message
            if self._workers[0] is not worker:  # It died; its successor is asked again.
                _send(self._workers[0], ProbeOrder())

    def submit(self, spec: TrialSpec) -> None:
        """Hand an attempt to a worker that is free; a worker still importing takes it up when it is ready."""
        worker = next(worker for worker in self._workers if worker.spec is None)
        worker.spec = spec
        _send(worker, spec)

    def wait(self, timeout: float) -> list[Event]:
        """Return what the workers have sent, after at most `timeout` seconds; perhaps nothing."""
        by_connection = {worker.connection: worker for worker in self._workers}
        ready = wait(list(by_connection), timeout)
        workers = [by_connection[connection] for connection in ready if isinstance(connection, Connection)]
        return [event for worker in workers for event in self._receive(worker)]

    def answer(self, report: EpochReport, *, prune: bool) -> None:
        """Answer an epoch's report; the worker goes on, or ends the trial there."""
        key = (report.number, report.attempt)
        for worker in self._workers:
            if worker.spec is not None and worker.spec.key == key:
                _send(worker, Verdict(prune))

    def stop(self) -> None:
        """End every worker, whatever it is doing; each one ends by itself when its connection closes."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            try:
                worker.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()

    def _start(self, slot: int) -> _Worker:
        ours, theirs = Pipe()
        environment = os.environ | MALLOC | {"TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2")}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        log = self._log_dir / f"worker-{slot}.log"
        with theirs, log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", WORKER_MODULE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is the coordinator's to answer.
            )
        ours.send(self._settings)
        return _Worker(slot, process, ours, log)

    def _receive(self, worker: _Worker) -> list[Any]:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        if isinstance(message, WorkerFailed):
            raise StudyError(message.message)
        worker.is_proven = True
        self._failed_starts = 0
        if isinstance(message, WorkerReady):
            return []
        if isinstance(message, TrialResult):
            worker.spec = None
        return [message]

    def _bury(self, worker: _Worker) -> list[Event]:
        """Put a new worker in the place of a dead one and report the attempt that died with it."""
        code = worker.process.wait()
        worker.connection.close()
        if not worker.is_proven:
            self._failed_starts += 1
            # A signal comes from outside; what ends by itself before it is ready will do so again.
            if code >= 0 or self._failed_starts > FAILED_STARTS:
                raise self._cannot_start(worker)
        self._workers[self._workers.index(worker)] = self._start(worker.slot)
        if worker.spec is None:
            return []
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return [AttemptLost(worker.spec.number, worker.spec.attempt, cause)]

    def _cannot_start(self, worker: _Worker) -> StudyError:
        return StudyError(
            f"A worker process ended before it was ready (exit code {worker.process.poll()}). "
            f"Expected it to import TensorFlow and load the data. What it printed is in {worker.log}."
        )


def _send(worker: _Worker, message: object) -> None:
    # One that died meanwhile leaves a closed connection, which is found where its answer is read.
    with suppress(OSError):
        worker.connection.send(message)


def default_workers() -> int:
    """Return one worker per GPU; without one, one per core that this process may use, as memory allows."""
    if gpus := visible_gpus():
        return len(gpus)
    by_memory = int(psutil.virtual_memory().available // BYTES_PER_WORKER)
    return max(1, min(int(cpu_count()), by_memory))


def threads_per_worker(workers: int) -> int:
    """Share the usable cores among the workers, at least one thread each."""
    return max(1, int(cpu_count()) // workers)


def visible_gpus() -> list[str]:
    """Name the NVIDIA GPUs that this process may use, without importing TensorFlow."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    if (tool := shutil.which("nvidia-smi")) is None:
        return []
    query = [tool, "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return []
    return answer.stdout.split() if answer.returncode == 0 else []
