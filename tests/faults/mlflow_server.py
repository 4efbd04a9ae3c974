"""A tracking server of the user's own, which can be gone for a while."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

# Not through a proxy that the environment may name.
OPENER = build_opener(ProxyHandler({}))
# Not a measure of anything: how long a start may take on a busy machine before something must be wrong.
PATIENCE = 400


class MlflowServer:
    """Serve the database of a store at a port; artifacts are written where they lie."""

    def __init__(self, root: Path, port: int) -> None:
        self._root = root
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        backend = ("--backend-store-uri", f"sqlite:///{self._root}/mlflow.db")
        artifacts = ("--default-artifact-root", (self._root / "artifacts").as_uri(), "--no-serve-artifacts")
        where = ("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1")
        safe = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *backend, *artifacts, *where],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | safe,
            cwd=self._root,
            process_group=0,
        )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def kill(self) -> None:
        """Be gone at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with OPENER.open(f"http://127.0.0.1:{self.port}/health", timeout=5):
                return True
        except (URLError, OSError):
            return False
