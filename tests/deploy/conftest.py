"""What tests of a study on the servers of a team share: a command that is run to its end."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]
# Not a measure of anything: how long a command on a busy machine may take before something must be wrong.
PATIENCE = 280


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
