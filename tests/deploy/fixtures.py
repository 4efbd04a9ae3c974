"""Servers of a team, and the environment of a study on them: once for each process of pytest-xdist."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from benchmarks.servers import Postgres, TeamMlflow


@pytest.fixture(scope="session")
def postgres() -> "Iterator[Postgres]":
    """Give a PostgreSQL server; skipped where there is none, but never where the variable CI is set."""
    # Not above: what this imports sets variables for MLflow, and the user's own are taken away first.
    from benchmarks.servers import PROGRAMS, Postgres, has_postgres, server_folder

    if not has_postgres():
        message = f"there is no PostgreSQL in {PROGRAMS}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    with server_folder() as folder:
        server = Postgres(folder)
        try:
            server.start()
            server.make_databases()
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def team(postgres: "Postgres") -> "Iterator[TeamMlflow]":
    """Give an MLflow server on it, with an account."""
    from benchmarks.servers import TeamMlflow

    server = TeamMlflow(postgres.folder, postgres)
    try:
        server.start()
        assert server.make_account().returncode == 0
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def on_servers(postgres: "Postgres", team: "TeamMlflow") -> dict[str, str]:
    """Give the environment of somebody who runs studies on both servers, passwords in both addresses."""
    from benchmarks.servers import ROOT, clean_environment

    trial_storage = postgres.address().replace("optuna@", f"optuna:{quoted(postgres.passwords['optuna'])}@")
    return clean_environment() | {
        "OPTUNA_STORAGE": trial_storage,
        "MLFLOW_TRACKING_URI": team.address.replace("://", f"://{team.account}:{quoted(team.password)}@"),
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
        "COLUMNS": "400",
    }


def quoted(password: str) -> str:
    """Write a password as it stands in an address."""
    from urllib.parse import quote

    return quote(password, safe="")
