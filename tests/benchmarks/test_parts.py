import inspect
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer

from benchmarks import __main__ as everything
from benchmarks import throughput
from benchmarks.processes import USERS_SERVERS, use_own_stores
from benchmarks.results import Line, points_line, publish
from benchmarks.throughput import OURS, Measurement

PEER = next(iter(throughput.PEERS))


@pytest.mark.parametrize("name", everything.PARTS)
def test_every_part_is_a_module_with_a_main_that_knows_its_words(name: str) -> None:
    part = everything.PARTS[name]

    known = inspect.signature(import_module(f"benchmarks.{part.module}").main).parameters

    assert {"output"} | {word[2:] for word in (*part.full, *(part.short or ())) if word.startswith("--")} <= set(known)


def test_a_name_that_no_part_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(typer.BadParameter, match=r"found nonsense.*throughput, training-float32"):
        everything.main(short=True, only=["overhead", "nonsense"])


def test_nothing_of_a_benchmark_goes_to_a_server_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in USERS_SERVERS:
        monkeypatch.setenv(name, "https://example.org")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")

    use_own_stores()

    assert set(USERS_SERVERS) & set(os.environ) == set()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize("launcher", ["optuna_workers", "keras_tuner_workers"])
def test_a_peers_workers_wait_for_no_library_of_their_launchers(launcher: str) -> None:
    command = [sys.executable, "-c", f"import sys, benchmarks.peers.{launcher}; print(*sys.modules)"]

    imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert set(imported) & {"tensorflow", "keras", "keras_tuner", "mlflow", "optuna", "numpy"} == set()


def test_results_say_how_often_and_name_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "made" / "sheet.json"
    monkeypatch.setattr(sys, "argv", ["x", "--short", "--data-dir", "/a/user/data", f"--output={output}"])

    publish("a benchmark", [], [Line("one", "1 s"), Line("other", "2 s", "3 s", n=40)], {"figure": 1}, 5, output)

    sheet = json.loads(output.read_text(encoding="utf-8"))
    assert [line["n"] for line in sheet["lines"]] == [5, 40]
    assert sheet["argv"] == ["--short", "--data-dir", "data", "--output=sheet.json"]
    assert {"machine", "commit", "n", "figure"} <= set(sheet)


def test_differences_are_shown_with_their_interval() -> None:
    assert points_line("a gain", [1.0, 2.0, 3.0], "2").measured == "+2.00 points (95%: -0.48 to +4.48)"


class Rounds:
    """Stand for a bench whose contenders have run already."""

    precision, workers, threads, images = "float32", 2, 1, 100
    trials = ({"epochs": 1},)

    def __init__(self, *measured: Measurement | BaseException) -> None:
        self._measured = measured

    def __call__(self, *_: object) -> "Rounds":
        return self

    def round(self, _peers: list[str]) -> object:
        for one in self._measured:
            if isinstance(one, BaseException):
                raise one
            yield one


def test_a_contender_that_fails_leaves_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "throughput.json"
    failed = Measurement(PEER, "matched", 9.0, failure="ended with 1")
    bench = Rounds(Measurement(OURS, "", 10.0, 1), Measurement(PEER, "defaults", 30.0, 1), failed)
    monkeypatch.setattr(throughput, "Bench", bench)

    with pytest.raises(SystemExit, match=rf"failed: {PEER.replace('+', '.')} matched"):
        throughput.main(peers=[PEER], output=output)

    (line,) = json.loads(output.read_text(encoding="utf-8"))["lines"]
    assert line["measured"] == "3.00x, failed matched"
    assert line["goal"]


def test_an_interruption_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "throughput.json"
    bench = Rounds(Measurement(OURS, "", 10.0, 1), Measurement(PEER, "defaults", 30.0, 1), KeyboardInterrupt())
    monkeypatch.setattr(throughput, "Bench", bench)

    with pytest.raises(KeyboardInterrupt):
        throughput.main(short=True, peers=[PEER], output=output)

    sheet = json.loads(output.read_text(encoding="utf-8"))
    (line,) = sheet["lines"]
    assert [one["contender"] for one in sheet["measurements"][0]] == [OURS, PEER]
    assert line["measured"] == "3.00x, not measured matched"
    assert "short trials" in line["what"]
    assert line["goal"] == ""
