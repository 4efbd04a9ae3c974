"""What a study on the servers of a team needs: its environment, and a command that is run to its end."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from benchmarks.servers import Postgres, TeamMlflow

Command = Callable[..., "subprocess.CompletedProcess[str]"]
# Not a measure of anything: how long a command on a busy machine may take before something must be wrong.
PATIENCE = 280


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


@pytest.fixture(scope="session")
def run(on_servers: dict[str, str]) -> Command:
    """Give the function that runs `python -m experiments.NAME WORDS`."""

    def run(
        name: str, *words: object, cwd: Path | None = None, environment: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", f"experiments.{name}", *map(str, words)]
        own = on_servers | (environment or {})
        return subprocess.run(command, env=own, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False)

    return run


def quoted(password: str) -> str:
    """Write a password as it stands in an address."""
    from urllib.parse import quote

    return quote(password, safe="")
