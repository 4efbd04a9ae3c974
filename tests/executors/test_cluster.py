"""The promises about a Ray cluster: one that cannot be used is refused within seconds."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fashion_study.errors import BadInputError
from fashion_study.executors.cluster import Resources, connected

SQLITE = "sqlite:////here/mlflow.db"
GIBIBYTE = 2**30


@contextmanager
def web_server() -> Iterator[str]:
    """Run a web server, where Ray is expected."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def closed_port() -> Iterator[str]:
    """Yield an address where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def refusal(address: str) -> str:
    with pytest.raises(BadInputError) as caught, connected(address, SQLITE):
        pass
    return str(caught.value)


def test_an_address_where_nobody_listens_is_refused() -> None:
    with closed_port() as address:
        said = refusal(address)
    assert f"No Ray cluster answers at {address}: Connection refused" in said
    assert "ray start --head" in said


def test_an_address_where_something_else_listens_is_refused() -> None:
    with web_server() as address:
        assert f"{address}: what listens there is not Ray" in refusal(address)


@pytest.mark.parametrize(
    ("resources", "room"),
    [
        (Resources(1, 0, GIBIBYTE), 4),
        (Resources(0.1, 0, GIBIBYTE), 8),
        (Resources(1, 0.5, GIBIBYTE), 4),
        (Resources(0.5, 1, GIBIBYTE), 2),
        (Resources(1, 0, 3 * GIBIBYTE), 2),
        (Resources(5, 0, GIBIBYTE), 0),
        (Resources(0.1, 0.1, 2**20), 20),
    ],
)
def test_every_resource_limits_the_workers_of_a_node(resources: Resources, room: int) -> None:
    assert resources.room_on(Resources(4.0, 2.0, 8 * GIBIBYTE)) == room


def test_a_node_without_what_is_wanted_has_no_room() -> None:
    node = Resources.of({"CPU": 4.0, "memory": 8.0 * GIBIBYTE, "node:10.0.0.1": 1.0})
    assert Resources(1, 1, GIBIBYTE).room_on(node) == 0
