import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import psutil
import pytest

from fashion_study.mlflow_ui.server import choose_port
from tests.support.processes import started_process
from tests.support.study_store import Studies

ROOT = Path(__file__).parents[2]
# Not through a proxy that the environment may name.
OPENER = build_opener(ProxyHandler({}))


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "experiments.ui", *map(str, words)]


def ended(*words: object, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Studies:
    studies = Studies(tmp_path_factory.mktemp("ui") / "store")
    study = studies.study("digits-small", ended=1)
    for objective in (0.5, 0.7):
        studies.trial(study, objective)
    return studies


@contextmanager
def started(*words: object) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Start the command, and give it with all that it printed until it waits for Ctrl-C."""
    with started_process(
        command(*words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        printed = ""
        try:
            while "Ctrl-C" not in printed:
                line = process.stdout.readline()
                assert line, printed
                printed += line
            yield process, printed
        finally:
            process.kill()


def end(process: "subprocess.Popen[str]", number: signal.Signals) -> int:
    """End the command with a signal, see that it leaves no process, and return its exit code."""
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(number)
    exit_code = process.wait(timeout=120)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    return exit_code


def test_it_prints_the_study_s_pages_and_ctrl_c_ends_all(studies: Studies) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = taken.getsockname()[1]
        with started("--store", studies.store.root, "--port", wanted) as (process, printed):
            port = int(re.findall(r"takes (\d+) instead", printed)[0])
            assert f"Port {wanted} is taken" in printed
            addresses = re.findall(r"http://\S+", printed)
            assert [address.partition("?")[0] for address in addresses] == [
                f"http://127.0.0.1:{port}/#/compare-runs",
                f"http://127.0.0.1:{port}/#/experiments/{studies.experiment}/runs",
            ]
            with OPENER.open(addresses[0], timeout=60) as response:
                assert response.status == 200
            assert end(process, signal.SIGINT) == 130
    assert choose_port(port) == port


def test_a_named_server_s_pages_are_printed_and_none_is_started(studies: Studies, tmp_path: Path) -> None:
    with started("--store", studies.store.root, "--port", choose_port(0)) as (process, printed):
        (address,) = set(re.findall(r"http://[^/\s]+", printed))
        done = ended("--store", tmp_path / "other", MLFLOW_TRACKING_URI=address)
        assert end(process, signal.SIGTERM) == 143
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{address}/#/compare-runs?runs=" in done.stdout
    assert f"{address}/#/experiments/{studies.experiment}/runs" in done.stdout
    assert "Ctrl-C" not in done.stdout


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    done = ended("--store", tmp_path / "nowhere")
    assert done.returncode == 3
    assert "experiments.run_study" in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_study_that_is_not_there_is_refused(studies: Studies) -> None:
    done = ended("--store", studies.store.root, "--study", "third")
    assert done.returncode == 2
    assert "digits-small" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("port", ["80", "70000", "http"])
def test_a_port_that_is_none_is_refused(port: str, tmp_path: Path) -> None:
    done = ended("--store", tmp_path, "--port", port)
    assert done.returncode == 2
    assert "--port" in done.stderr
