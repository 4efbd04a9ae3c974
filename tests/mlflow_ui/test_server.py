import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import psutil
import pytest
from fastapi.routing import APIRoute
from mlflow import MlflowClient
from mlflow.server.assistant.api import assistant_router

from fashion_study.errors import BadInputError, StoreError
from fashion_study.mlflow_ui.server import SAFE_SETTINGS, Server, choose_port, find_pages, serve
from fashion_study.store.store import Store
from tests.support.empty_store import empty_store
from tests.support.processes import has_ended, started_process
from tests.support.study_store import Studies

# What a user may have set for other servers, and what would open this one.
DANGEROUS = {
    "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
    "MLFLOW_SERVER_ALLOWED_HOSTS": "*",
    "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "*",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true",
    "MLFLOW_DISABLE_TELEMETRY": "false",
    "MLFLOW_HOST": "0.0.0.0",
    "MLFLOW_STATIC_PREFIX": "/elsewhere",
    "UVICORN_HOST": "0.0.0.0",
}
OWNER = """
import sys, time
from fashion_study.mlflow_ui.server import serve
from fashion_study.store.store import open_store
with serve(open_store(sys.argv[1]), int(sys.argv[2])):
    print("serving", flush=True)
    time.sleep(600)
"""
# Not a measure of anything: how long it may take before something must be wrong.
PATIENCE = 60


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Studies:
    studies = Studies(tmp_path_factory.mktemp("server") / "store")
    studies.trial(studies.study("first", ended=2_000), 0.5)
    studies.study("second", ended=1_000)
    return studies


def compared(page: str | None) -> list[str]:
    assert page is not None
    route, _, query = page.partition("?")
    assert route == "/#/compare-runs"
    runs: list[str] = json.loads(parse_qs(query)["runs"][0])
    return runs


def test_the_comparison_shows_the_best_complete_trials_in_order(tmp_path: Path) -> None:
    studies = Studies(tmp_path / "store")
    study = studies.study("many", ended=1)
    ids = {objective: studies.trial(study, objective) for objective in (0.3, 0.7, 0.1, 0.9, 0.5, 0.2)}
    studies.trial(study, 0.99, status="KILLED")
    studies.trial(studies.study("other", ended=0), 0.95)
    pages = find_pages(studies.store, "many")
    assert compared(pages.comparison) == [ids[objective] for objective in (0.9, 0.7, 0.5, 0.3, 0.2)]
    assert pages.comparison is not None
    assert pages.comparison.endswith(f"&experiments=%5B%22{studies.experiment}%22%5D")
    assert pages.experiment == f"/#/experiments/{studies.experiment}/runs"


def test_without_a_name_the_study_worked_on_last_is_shown(studies: Studies) -> None:
    assert find_pages(studies.store).study == "first"
    assert find_pages(studies.store, "second").study == "second"


def test_a_study_that_is_running_is_the_latest(tmp_path: Path) -> None:
    studies = Studies(tmp_path / "store")
    studies.study("running", ended=None)
    studies.study("finished", ended=int(time.time() * 1000))
    assert find_pages(studies.store).study == "running"


def test_one_complete_trial_is_nothing_to_compare(studies: Studies) -> None:
    assert find_pages(studies.store, "first").comparison is None


def test_an_unknown_study_is_refused_with_those_that_are_there(studies: Studies) -> None:
    with pytest.raises(BadInputError, match=r"'third'.* first, second"):
        find_pages(studies.store, "third")


def test_a_store_without_a_study_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"experiments\.run_study"):
        find_pages(empty_store(tmp_path / "store"))


def test_a_wanted_port_is_taken_if_free_and_another_one_if_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = choose_port(port)
        assert other != port
    assert choose_port(other) == other


@pytest.fixture(scope="module")
def server(studies: Studies) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in DANGEROUS.items():
            environment.setenv(name, value)
        with serve(studies.store, choose_port(0)) as server:
            yield server


@contextmanager
def asked(server: Server, method: str, path: str, body: object, headers: dict[str, str]) -> Iterator[HTTPResponse]:
    host, port = server.address.removeprefix("http://").split(":")
    with closing(HTTPConnection(host, int(port), timeout=PATIENCE)) as connection:
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {"Content-Type": "application/json", **headers})
        yield connection.getresponse()


def post(server: Server, path: str, body: object) -> tuple[int, bytes]:
    with asked(server, "POST", path, body, {}) as response:
        return response.status, response.read()


def request(server: Server, method: str, path: str, **headers: str) -> tuple[int, bytes]:
    body = {"name": f"made by {headers.get('Origin', 'nobody')}"} if method == "POST" else None
    with asked(server, method, path, body, headers) as response:
        return response.status, response.read()


def answer(server: Server, method: str, path: str, **headers: str) -> tuple[int, list[str]]:
    """Return the status and the names of the headers."""
    with asked(server, method, path, None, headers) as response:
        return response.status, list(response.headers)


def test_the_ui_and_the_artifacts_of_runs_are_served(server: Server, studies: Studies) -> None:
    (run,) = studies.client.search_runs([studies.experiment], "tags.kind = 'trial'")
    status, page = request(server, "GET", "/")
    assert (status, b"<title>MLflow</title>" in page) == (200, True)
    status, content = request(server, "GET", f"/get-artifact?path=evidence.json&run_uuid={run.info.run_id}")
    assert (status, json.loads(content)) == (200, {"objective": 0.5})


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "192.168.0.7:{port}", "0.0.0.0:{port}"])
def test_another_hosts_name_is_refused(host: str, server: Server) -> None:
    named = host.format(port=server.address.rpartition(":")[2])
    assert request(server, "GET", "/", Host=named)[0] == 403
    assert request(server, "GET", "/ajax-api/2.0/mlflow/experiments/search?max_results=1", Host=named)[0] == 403


def places(server: Server) -> tuple[str, ...]:
    """Name where a page may come from that is none of the server's own, another port of this machine among them."""
    port = server.address.rpartition(":")[2]
    others = ("http://localhost:9999", "http://127.0.0.1:9999", "http://localhost", "http://[::1]:9999")
    return (*others, f"https://127.0.0.1:{port}", f"http://localhost:{port}", "http://evil.example", "null")


def test_a_write_from_another_origin_is_refused(server: Server, studies: Studies) -> None:
    paths = ("/api/2.0/mlflow/experiments/create", "/ajax-api/2.0/mlflow/experiments/create", "/graphql", "/v1/traces")
    for origin in places(server):
        for path in paths:
            assert request(server, "POST", path, Origin=origin)[0] == 403, (origin, path)
    for method in ("PUT", "PATCH", "DELETE"):
        assert request(server, method, paths[0], Origin="http://localhost:9999")[0] == 403, method
    assert not studies.client.search_experiments(filter_string="name LIKE 'made by%'")


def test_another_origin_s_page_gets_no_leave_to_read_or_write(server: Server) -> None:
    path = "/ajax-api/2.0/mlflow/experiments/search?max_results=1"
    for origin in places(server):
        status, headers = answer(server, "GET", path, Origin=origin)
        assert status == 200
        _, more = answer(server, "OPTIONS", path, Origin=origin, **{"Access-Control-Request-Method": "POST"})
        assert not [name for name in (*headers, *more) if name.lower().startswith("access-control")], origin


def test_mlflows_own_client_reads_and_writes(server: Server, studies: Studies) -> None:
    client = MlflowClient(server.address)
    made = client.create_experiment("made by a client")
    assert studies.client.get_experiment(made).name == "made by a client"
    client.delete_experiment(made)


def test_a_write_from_its_own_pages_is_taken(server: Server, studies: Studies) -> None:
    port = server.address.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        own = {"Host": host, "Origin": f"http://{host}"}
        assert request(server, "POST", "/ajax-api/2.0/mlflow/experiments/create", **own)[0] == 200
        (made,) = studies.client.search_experiments(filter_string="name LIKE 'made by%'")
        assert made.name == f"made by http://{host}"
        assert str(made.artifact_location).startswith(studies.store.root.as_uri())
        studies.client.delete_experiment(made.experiment_id)


def test_jobs_pickles_and_telemetry_are_off_whatever_is_set(server: Server) -> None:
    processes = family(server.process.pid)
    assert len(processes) >= 2
    for process in processes:
        settings = process.environ()
        assert {name: settings.get(name) for name in SAFE_SETTINGS} == SAFE_SETTINGS
        assert not settings.keys() & (DANGEROUS.keys() - SAFE_SETTINGS.keys() - {"MLFLOW_SERVER_ALLOWED_HOSTS"})
    assert not [process for process in processes if "huey" in " ".join(process.cmdline())]


def test_a_job_that_is_asked_for_is_refused(server: Server) -> None:
    status, answer = post(server, "/ajax-api/3.0/jobs/", {"job_name": "invoke_genai_evaluate", "params": {}})
    # It knows no job by name, or says that it runs none.
    assert status >= 400
    assert b"job execution feature is not enabled" in answer or b"Invalid job name" in answer


def test_the_assistant_which_runs_commands_is_refused(server: Server) -> None:
    routes = [route for route in assistant_router.routes if isinstance(route, APIRoute)]
    asked = [(method, route.path) for route in routes for method in route.methods or ()]
    assert ("PUT", "/ajax-api/3.0/mlflow/assistant/config") in asked
    for method, path in asked:
        for place in (path, f"/prefix{path}"):
            refusal = request(server, method, place)
            assert refusal == (403, b"Refused: MLflow's assistant is off here.\n"), (method, place)


def test_usage_that_a_page_reports_is_not_taken(server: Server) -> None:
    status, answer = post(server, "/ajax-api/3.0/mlflow/ui-telemetry", {"records": []})
    assert (status, json.loads(answer)) == (200, {"status": "disabled"})


def test_it_listens_on_this_machine_only(server: Server) -> None:
    listening = {
        connection.laddr
        for process in family(server.process.pid)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {(address.ip, address.port) for address in listening} == {
        ("127.0.0.1", int(server.address.rpartition(":")[2]))
    }


def test_a_server_that_ends_by_itself_is_reported(studies: Studies) -> None:
    with serve(studies.store, choose_port(0)) as server:
        for process in family(server.process.pid)[1:]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with pytest.raises(StoreError, match=r"mlflow-server\.log"):
            server.wait()


def test_a_server_that_cannot_start_is_reported_with_its_output(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("This was a database once; something else has been written over it.")
    store = Store(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(StoreError, match=r"mlflow-server\.log"), serve(store, choose_port(0)):
        pytest.fail("it has started")
    assert "database" in (tmp_path / "logs" / "mlflow-server.log").read_text()


class SomebodyElse(BaseHTTPRequestHandler):
    """Answer as a healthy server does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_another_server_on_the_port_is_not_shown_as_ours(tmp_path: Path) -> None:
    store = empty_store(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), SomebodyElse) as other:
        threading.Thread(target=other.serve_forever).start()
        try:
            with pytest.raises(StoreError, match="ended with exit code"), serve(store, other.server_port):
                pytest.fail("it has started")
        finally:
            other.shutdown()
    assert "address already in use" in (tmp_path / "logs" / "mlflow-server.log").read_text()


def test_the_server_ends_with_its_owner_though_that_is_killed(studies: Studies) -> None:
    port = choose_port(0)
    words = [sys.executable, "-c", OWNER, str(studies.store.root), str(port)]
    with started_process(words, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "serving\n"
        processes = family(owner.pid)[1:]
        owner.kill()
    assert len(processes) >= 2
    until(lambda: all(map(has_ended, processes)))
    assert choose_port(port) == port


def family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)
