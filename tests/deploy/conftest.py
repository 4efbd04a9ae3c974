"""What a study on the servers of a team needs: its environment, and commands that are run to their end."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]
# Not a measure of anything: how long a command on a busy machine may take before something must be wrong.
PATIENCE = 280
NAMES_A_STORE = ("PG", "OPTUNA_", "MLFLOW_TRACKING_")


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


@pytest.fixture
def call(on_servers: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Give the function that does the same in this process, which has the slow libraries already."""

    def call(
        name: str, *words: object, cwd: Path, environment: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        from experiments._entry import run

        capsys.readouterr()
        command = [name, *map(str, words)]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(NAMES_A_STORE)}
        variables = kept | on_servers | (environment or {})
        # Afterwards they are as before: a command sets some for MLflow.
        with monkeypatch.context() as patched, patch.dict(os.environ, variables, clear=True):
            patched.setattr(sys, "argv", command)
            patched.chdir(cwd)
            with pytest.raises(SystemExit) as end:
                run(importlib.import_module(f"experiments.{name}").main)
        return subprocess.CompletedProcess(command, int(end.value.code or 0), *capsys.readouterr())

    return call
