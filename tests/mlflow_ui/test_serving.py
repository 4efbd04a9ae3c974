import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import pytest

from fashion_study.mlflow_ui.server import choose_port
from fashion_study.tracking.registry import CHAMPION
from tests.support.model_store import ModelStore, digits, trained

# Not through a proxy that the environment may name.
OPENER = build_opener(ProxyHandler({}))
# Not a measure of anything: how long a start may take on a busy machine before something must be wrong.
PATIENCE = 200


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the server of docs/after-a-study.md on the champion of a store."""
    folder = tmp_path_factory.mktemp("serving")
    models = ModelStore(folder / "store")
    version = models.register(models.trial(models.study("digits-small"), 0, trained(8)))
    models.registry.move_alias(version.name, CHAMPION, version.number)
    port = choose_port(0)
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *("mlflow", "models", "serve", "-m", "models:/digits-cnn@champion"),
                *("--env-manager", "local", "--port", str(port)),
            ],
            stdout=output,
            stderr=output,
            # In an activated environment: MLflow starts uvicorn by its name.
            env=os.environ
            | {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "MLFLOW_TRACKING_URI": models.store.tracking_uri,
            },
            cwd=folder,
            process_group=0,
        )
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/ping", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_it_answers(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), OPENER.open(url, timeout=10):
            return
        time.sleep(0.2)
    pytest.fail(log.read_text())


def answer(address: str, inputs: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    body = json.dumps({"inputs": inputs}).encode()
    request = Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with OPENER.open(request, timeout=60) as response:
        return np.array(json.load(response)["predictions"])


def test_mlflows_own_server_answers_raw_pixels_as_the_model_does(address: str) -> None:
    images = digits().validation.images[:5]
    served = answer(address, images.tolist())
    assert served.shape == (5, 10)
    assert served == pytest.approx(trained(8).predict(images, verbose=0), abs=1e-5)


def test_the_server_takes_pixels_between_whole_numbers_too(address: str) -> None:
    images = digits().validation.images[:2] * 0.5
    assert answer(address, images.tolist()) == pytest.approx(trained(8).predict(images, verbose=0), abs=1e-5)
