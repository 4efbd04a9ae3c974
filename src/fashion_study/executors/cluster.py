"""A Ray cluster: one that is there already, or one of this machine's own, and how much room it has."""

import logging
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import mkdtemp
from typing import Any, Self
from urllib.parse import urlsplit

# Read when Ray is imported. What happens to its nodes and workers it would print into the study's display, at length.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from joblib import cpu_count
from ray._private import ray_constants
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fashion_study.errors import BadInputError, StudyError
from fashion_study.executors.local import visible_gpus
from fashion_study.signals import Terminated
from fashion_study.text import without_passwords

ANSWER_SECONDS = 5.0
LOOPBACK = "127.0.0.1"
# Ray takes 75 MiB at least; what goes through it here are messages of a few kilobytes.
OBJECT_STORE = 80 * 2**20
HOW_TO_START = (
    "Expected what `ray start --head` shows. Correct --address or RAY_ADDRESS; without both a cluster is started here."
)
# How a connection in HTTP/2, which Ray speaks, begins: a fixed line, and settings (type 4), here none.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@dataclass(frozen=True)
class Resources:
    """Say what a worker takes of its node: CPUs, a share of a GPU, and bytes of memory."""

    cpus: float
    gpus: float
    memory: int

    @classmethod
    def of(cls, resources: dict[str, float]) -> Self:
        """Return what a node with these resources has in all."""
        return cls(resources.get("CPU", 0.0), resources.get("GPU", 0.0), int(resources.get("memory", 0.0)))

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs, {self.gpus:g} GPUs and {self.memory / 2**20:,.0f} MiB"

    def room_on(self, resources: dict[str, float]) -> int:
        """Count the workers for which a node with these resources has room."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        # Shares are decimal fractions: ten tenths are one.
        return int(min(resources.get(name, 0.0) / each + 1e-6 for name, each in wanted.items() if each))


class Cluster:
    """Look at the nodes of the cluster that this process is connected to; `only` one of them, where that is given.

    One that `is_own` was started here: it stays as it is.
    """

    def __init__(self, only: str | None = None, *, is_own: bool = False) -> None:
        self._only = only
        self._is_own = is_own

    @property
    def placing(self) -> str | NodeAffinitySchedulingStrategy:
        """Tell Ray on which nodes workers may be."""
        return "SPREAD" if self._only is None else NodeAffinitySchedulingStrategy(self._only, soft=False)

    def room(self, needed: Resources) -> int:
        """Count the workers for which there would be room if nobody else used the cluster.

        Raises:
            StudyError: it was started here, and its one node has died.
        """
        nodes = self._resources()
        if self._is_own and not nodes:
            raise StudyError(
                "The Ray cluster that was started on this machine has died. Expected it to live as long as the study. "
                "Every result that was shown is kept; the same command goes on."
            )
        return sum(needed.room_on(resources) for resources in nodes)

    def refuse_without_room(self, needed: Resources, workers: int | None) -> None:
        """Refuse to wait for ever; where a number of workers is asked for, a cluster of many nodes may grow to it.

        Raises:
            BadInputError: no node is large enough for a worker.
        """
        may_grow = self._only is None and not self._is_own
        if self.room(needed) > 0 or (workers is not None and may_grow):
            return
        found = "; ".join(str(Resources.of(resources)) for resources in self._resources())
        raise BadInputError(
            f"A worker takes {needed}, and no node of the Ray cluster has as much (found {found}). Ask for less with "
            "--worker-cpus, --worker-gpus or --worker-memory"
            + ("; or say with --workers to how many the cluster will grow." if may_grow else ".")
        )

    def has_gpus(self) -> bool:
        """Say whether any node has a GPU."""
        return any(resources.get("GPU") for resources in self._resources())

    def _resources(self) -> list[dict[str, float]]:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        return [node["Resources"] for node in nodes if self._only in (None, node["NodeID"])]


@contextmanager
def connected(address: str | None, tracking_uri: str) -> Iterator[Cluster]:
    """Connect to the cluster at `address`, or start one on this machine that ends with the block.

    Raises:
        BadInputError: no cluster can be used there, or it has several nodes and only this one can write the runs.
    """
    if address is None:
        with _on_this_machine_alone(), _own_cluster():
            yield Cluster(is_own=True)
        return
    _check_cluster_reachable(address)
    with _connection(f"The Ray cluster at {address} cannot be used", address=address):
        yield Cluster(None if _can_be_shared(tracking_uri) else _the_one_node(tracking_uri))


@contextmanager
def _on_this_machine_alone() -> Iterator[None]:
    """Let Ray's processes listen on 127.0.0.1, as on macOS; elsewhere Ray replaces it by an address of the network."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _own_cluster() -> Iterator[None]:
    # Not the system's folder for temporary files, which can be long: Ray makes sockets below, whose paths cannot.
    folder = mkdtemp(prefix="ray-", dir="/tmp")
    try:
        with _connection(
            "Ray cannot start on this machine",
            address="local",
            num_cpus=int(cpu_count()),
            num_gpus=len(visible_gpus()),
            object_store_memory=OBJECT_STORE,
            include_dashboard=False,
            _node_ip_address=LOOPBACK,
            _temp_dir=folder,
            # What a worker takes is watched already, and a trial that takes too much is told from others.
            _system_config={"memory_monitor_refresh_ms": 0},
        ):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _connection(what_failed: str, **options: Any) -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except SystemExit as stop:  # So Ray answers SIGTERM.
            raise Terminated from stop
        except (RayError, OSError, RuntimeError, ValueError) as error:
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise BadInputError(
                f"{what_failed}: {line.rstrip('.')}. Expected a cluster of the same versions of Ray and Python, with a "
                "node on this machine, and its token in RAY_AUTH_TOKEN where it asks for one."
            ) from error
        finally:
            _hand_back(handlers)
        yield
    finally:
        ray.shutdown()


def _hand_back(handlers: dict[signal.Signals, Any]) -> None:
    """Undo that Ray answers SIGTERM by itself."""
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _check_cluster_reachable(address: str) -> None:
    """Ask whether anything like Ray listens there: Ray itself would ask for two minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as connection:
            connection.settimeout(ANSWER_SECONDS)
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return
            connection.sendall(PREFACE)
            begin = connection.recv(9)
        reason = "" if begin[3:4] == b"\4" else "what listens there is not Ray"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise BadInputError(f"No Ray cluster answers at {address}: {reason.rstrip('.')}. {HOW_TO_START}")


def _can_be_shared(tracking_uri: str) -> bool:
    return urlsplit(tracking_uri).scheme in ("http", "https")


def _the_one_node(tracking_uri: str) -> str:
    """Return this machine's node; the workers of a store that only this machine has must not be anywhere else."""
    count = sum(node["Alive"] for node in ray.nodes())
    if count > 1:
        raise BadInputError(
            f"The Ray cluster has {count} nodes, and the runs would be kept in {without_passwords(tracking_uri)}, "
            "which workers on other machines cannot reach. Expected an MLflow server: start one with --serve-artifacts "
            "and name it with MLFLOW_TRACKING_URI=http://HOST:PORT. Or leave out --address."
        )
    return str(ray.get_runtime_context().get_node_id())
