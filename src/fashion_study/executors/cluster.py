"""A Ray cluster: a running one, or one started on this machine, and how many workers it has room for."""

import logging
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from tempfile import mkdtemp
from typing import Any, Self
from urllib.parse import urlsplit

# Read when Ray is imported. Ray would print what happens to its nodes and workers into the study's display, at length.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
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
# Ray requires at least 75 MiB; the messages here have a few kilobytes.
OBJECT_STORE = 80 * 2**20
HOW_TO_START = (
    "Expected what `ray start --head` shows. Correct --address or RAY_ADDRESS; without both a cluster is started here."
)
# How a connection in HTTP/2, which Ray speaks, begins: a fixed line, and settings (type 4), here none.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@dataclass(frozen=True)
class Resources:
    """What a worker takes of its node: CPUs, a share of a GPU, and bytes of memory."""

    cpus: float
    gpus: float
    memory: int

    @classmethod
    def of(cls, node: dict[str, float]) -> Self:
        """Return all that a node has, from Ray's own mapping."""
        return cls(node.get("CPU", 0.0), node.get("GPU", 0.0), int(node.get("memory", 0.0)))

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs, {self.gpus:g} GPUs and {self.memory / 2**20:,.0f} MiB"

    def room_on(self, node: "Resources") -> int:
        """Count the workers for which a node with these resources has room."""
        # Shares are decimal fractions: ten tenths are one.
        return int(min(has / takes + 1e-6 for has, takes in zip(astuple(node), astuple(self), strict=True) if takes))


@dataclass(frozen=True)
class Cluster:
    """The cluster that this process is connected to; with `only`, that one node of it.

    A cluster that `is_own` was started here, and no node joins it.
    """

    only: str | None = None
    is_own: bool = False

    @property
    def placing(self) -> str | NodeAffinitySchedulingStrategy:
        """Return on which nodes Ray may place workers."""
        return "SPREAD" if self.only is None else NodeAffinitySchedulingStrategy(self.only, soft=False)

    def room(self, resources: Resources) -> int:
        """Count the workers for which there would be room if nobody else used the cluster.

        Raises:
            StudyError: the cluster was started here, and its one node has died.
        """
        nodes = self._nodes()
        if self.is_own and not nodes:
            raise StudyError(
                "The Ray cluster that was started on this machine has died. Expected it to live as long as the study. "
                "Every result that was shown is kept; the same command goes on."
            )
        return sum(map(resources.room_on, nodes))

    def check_room(self, resources: Resources, workers: int | None) -> None:
        """Refuse to wait for ever; a cluster of many nodes may still grow to a given number of workers.

        Raises:
            BadInputError: no node is large enough for a worker.
        """
        may_grow = self.only is None and not self.is_own
        if self.room(resources) > 0 or (workers is not None and may_grow):
            return
        found = "; ".join(map(str, self._nodes()))
        raise BadInputError(
            f"A worker takes {resources}, and no node of the Ray cluster has as much (found {found}). Ask for less "
            "with --worker-cpus, --worker-gpus or --worker-memory"
            + ("; or say with --workers to how many the cluster will grow." if may_grow else ".")
        )

    def has_gpus(self) -> bool:
        """Return whether any node has a GPU."""
        return any(node.gpus for node in self._nodes())

    def _nodes(self) -> list[Resources]:
        """Return the resources of each living node."""
        alive = (node for node in ray.nodes() if node["Alive"] and self.only in (None, node["NodeID"]))
        return [Resources.of(node["Resources"]) for node in alive]


@contextmanager
def connected(address: str | None, tracking_uri: str) -> Iterator[Cluster]:
    """Connect to the cluster at `address`, or start one on this machine that ends with the block.

    Raises:
        BadInputError: no cluster can be used there, or it has several nodes and only this one can write the runs.
    """
    if address is None:
        with _own_cluster():
            yield Cluster(is_own=True)
        return
    _check_cluster_reachable(address)
    with _connection(f"The Ray cluster at {address} cannot be used", address=address):
        if urlsplit(tracking_uri).scheme in ("http", "https"):
            yield Cluster()
            return
        # No other machine can write to this store.
        count = sum(node["Alive"] for node in ray.nodes())
        if count > 1:
            raise BadInputError(
                f"The Ray cluster has {count} nodes, and the runs would be kept in {without_passwords(tracking_uri)}, "
                "which workers on other machines cannot reach. Expected an MLflow server: start one with "
                "--serve-artifacts and name it with MLFLOW_TRACKING_URI=http://HOST:PORT. Or leave out --address."
            )
        yield Cluster(str(ray.get_runtime_context().get_node_id()))


@contextmanager
def _own_cluster() -> Iterator[None]:
    # Ray's processes listen on 127.0.0.1, as on macOS; elsewhere Ray would replace it by a network address.
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    # Not the system's folder for temporary files: Ray creates sockets below it, whose paths must be short.
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
            # The executor limits the memory of workers itself, and knows which trial has taken too much.
            _system_config={"memory_monitor_refresh_ms": 0},
        ):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _connection(what_failed: str, **options: Any) -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except SystemExit as stop:  # Ray's answer to SIGTERM.
            raise Terminated from stop
        except (RayError, OSError, RuntimeError, ValueError) as error:
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise BadInputError(
                f"{what_failed}: {line.rstrip('.')}. Expected a cluster of the same versions of Ray and Python, with a "
                "node on this machine, and its token in RAY_AUTH_TOKEN where it asks for one."
            ) from error
        finally:
            # Ray answers SIGTERM by itself.
            for number, handler in handlers.items():
                if signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
        yield
    finally:
        ray.shutdown()


def _check_cluster_reachable(address: str) -> None:
    """Connect as Ray does, once: Ray itself would try for two minutes."""
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
