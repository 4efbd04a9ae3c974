"""The MLflow server on a store, for one user on one machine, and the pages of a study in its UI."""

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from fashion_study.errors import BadInputError, StoreError
from fashion_study.store.failures import store_failures
from fashion_study.store.store import Store

HOST = "127.0.0.1"
# The entry point of `middleware`, as pyproject.toml names it.
APP = "fashion-study"
# The number of trials that the comparison page shows side by side.
COMPARED = 5
START_SECONDS = 180.0
STOP_SECONDS = 20.0

# MLflow's server would by default run jobs, unpickle what is uploaded, send usage statistics and call language models
# through its gateway. Its assistant has no setting: `middleware` refuses it.
SAFE_SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
}


@dataclass(frozen=True)
class Pages:
    """The pages of a study, relative to the server's address. `comparison` needs two complete trials."""

    study: str
    comparison: str | None
    experiment: str


@dataclass(frozen=True, eq=False)
class Server:
    """A server that has answered; `log` is the file of its output."""

    address: str
    log: Path
    process: "subprocess.Popen[bytes]"

    def wait(self) -> NoReturn:
        """Wait for a server that should run until this process ends.

        Raises:
            StoreError: it has ended by itself.
        """
        code = self.process.wait()
        raise StoreError(
            f"The MLflow server has ended by itself, with exit code {code}. Expected it to run until Ctrl-C. "
            f"What it printed is in {self.log}."
        )


def find_pages(store: Store, study: str | None = None) -> Pages:
    """Find a study's pages in the UI, by default those of the one that was worked on last.

    Raises:
        BadInputError: the store has no study of that name.
        StoreError: it has none at all, or cannot be read.
    """
    client = store.client()
    with store_failures(store, "Open the UI again when it answers."):
        run = _study_run(client, study)
        trials = client.search_runs(
            [run.info.experiment_id],
            f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.info.run_id}' and tags.kind = 'trial' "
            "and attributes.status = 'FINISHED'",
            order_by=["metrics.objective DESC"],
            max_results=COMPARED,
        )
    experiment = run.info.experiment_id
    ids = [trial.info.run_id for trial in trials]
    comparison = f"/#/compare-runs?runs={_in_url(ids)}&experiments={_in_url([experiment])}"
    return Pages(
        study=_study_of(run),
        comparison=comparison if len(ids) > 1 else None,
        experiment=f"/#/experiments/{experiment}/runs",
    )


@contextmanager
def serve(store: Store, port: int) -> Iterator[Server]:
    """Run MLflow's server on a store at 127.0.0.1, and end it with the block, or with this process however that ends.

    Other hosts' names and writes from other origins are refused; jobs, pickles, telemetry and the assistant are off.

    Raises:
        StoreError: the server does not start; what it printed is in the folder `logs` of the store.
    """
    log = store.root / "logs" / "mlflow-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fashion_study.mlflow_ui.watchdog", *_command(store, port)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=_environment(store),
            cwd="/",  # Python would import from a folder of the user's.
            process_group=0,  # Ctrl-C is for this process.
        )
    try:
        _wait_until_healthy(process, port, log)
        yield Server(f"http://{HOST}:{port}", log, process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()
        process.wait()


def choose_port(wanted: int) -> int:
    """Return the wanted port if it is free on 127.0.0.1, else another free one."""
    for port in (wanted, 0):
        with closing(socket.socket()) as candidate, suppress(OSError):
            # As the server does: a port whose last connection was just closed is free.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            candidate.bind((HOST, port))
            return int(candidate.getsockname()[1])
    raise StoreError(f"No port is free on {HOST}. Expected one for the MLflow UI. End another server first.")


def _study_run(client: MlflowClient, study: str | None) -> Run:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.kind = 'study'")
    if not runs:
        raise StoreError(
            "The store has no study. Expected one to show. Run one with python -m experiments.run_study, or name "
            "another folder with --store; python -m experiments.doctor says whether its experiment is deleted."
        )
    known = sorted({_study_of(run) for run in runs})
    chosen = [run for run in runs if study in (None, _study_of(run))]
    if not chosen:
        raise BadInputError(f"--study is {study!r}. Expected one of {', '.join(known)}.")
    return max(chosen, key=lambda run: (run.info.end_time or math.inf, run.info.start_time))


def _study_of(run: Run) -> str:
    """Return the study of a run, its own name where a user has deleted the tag."""
    return str(run.data.tags.get("study", run.info.run_name))


def _in_url(ids: list[str]) -> str:
    return quote(json.dumps(ids, separators=(",", ":")))


def _command(store: Store, port: int) -> list[str]:
    # One process is enough for one user. Artifacts are read from their folder, and none are uploaded.
    options = [
        "--no-serve-artifacts",
        f"--host={HOST}",
        f"--port={port}",
        "--workers=1",
        f"--app-name={APP}",
        f"--allowed-hosts={HOST}:{port},localhost:{port}",
        f"--default-artifact-root={(store.root / 'artifacts').as_uri()}",
    ]
    return [sys.executable, "-m", "mlflow", "server", *options]


def _environment(store: Store) -> dict[str, str]:
    """Return this process's environment, with no settings of MLflow or uvicorn but those above."""
    foreign = ("MLFLOW_", "_MLFLOW_", "UVICORN_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    # Not on the command line, which other users can read: a database's address may hold a password.
    return kept | SAFE_SETTINGS | {"MLFLOW_BACKEND_STORE_URI": store.tracking_uri}


def _wait_until_healthy(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _has_port(process.pid, port) and _is_healthy(port):
            return
        time.sleep(0.1)
    ending = "has not answered yet" if process.poll() is None else f"ended with exit code {process.poll()}"
    raise StoreError(
        f"The MLflow server {ending}. Expected an answer at {HOST}:{port} within {START_SECONDS:.0f} s. "
        f"What it printed is in {log}."
    )


def _has_port(pid: int, port: int) -> bool:
    """Return whether a process or one below it listens there: another server may have taken the port meanwhile."""
    sockets: list[Any] = []
    with suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            # psutil denies access to a process that has ended.
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                sockets += process.net_connections("tcp")
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets)


def _is_healthy(port: int) -> bool:
    # Not through a proxy that the environment may name.
    with closing(HTTPConnection(HOST, port, timeout=5)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
