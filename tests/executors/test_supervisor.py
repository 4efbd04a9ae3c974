"""The promises of the supervisor of a worker on another machine, tested without a cluster."""

import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fashion_study.errors import DataError
from fashion_study.executors.local import LocalExecutor
from fashion_study.executors.ray import Supervisor, WorkerContext
from fashion_study.testing.training import PROBED, toy_report, toy_result
from fashion_study.trial import DataSource, ProbeOrder, TrialState
from tests.executors.test_executor_contract import PYTHONPATH, SETTINGS, TOY, spec

ELSEWHERE = DataSource("fashion-mnist", Path("/on/the/coordinator's/machine"), "d" * 64)


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv("TOY_OUTCOMES", "{}")  # Set by the supervisor for good, in a process of its own.
    began = []
    start = LocalExecutor.__init__

    def note(executor: LocalExecutor, *arguments: Any) -> None:
        start(executor, *arguments)
        began.append(executor)

    monkeypatch.setattr(LocalExecutor, "__init__", note)
    yield Supervisor()
    for executor in began:  # In a cluster they end with the supervisor's process.
        executor.close()


def worker_context(folder: Path, source: DataSource = SETTINGS.source) -> WorkerContext:
    return WorkerContext(replace(SETTINGS, source=source), folder, TOY, {"TOY_OUTCOMES": "{}"})


def test_each_call_returns_with_what_comes_next(supervisor: Supervisor, tmp_path: Path) -> None:
    asked = spec(0, epochs=2)

    assert supervisor.begin(worker_context(tmp_path), "ray-0") == []
    assert supervisor.probe(ProbeOrder()) == [PROBED]
    supervisor.submit(asked)
    first, second = toy_report(asked, 1), toy_report(asked, 2)
    assert supervisor.follow() == [first]
    assert supervisor.answer(first, prune=False) == [second]
    assert supervisor.answer(second, prune=False) == [toy_result(asked, TrialState.COMPLETE, 2)]
    assert (tmp_path / "ray-0" / "worker-0.log").exists()


def test_images_elsewhere_than_the_coordinator_s_are_found(
    supervisor: Supervisor, fashion_mnist_dir: Path, tmp_path: Path
) -> None:
    assert fashion_mnist_dir.is_dir()  # FASHION_MNIST_DIR names it on this machine too.
    assert supervisor.begin(worker_context(tmp_path, ELSEWHERE), "ray-0") == []
    assert supervisor.probe(ProbeOrder()) == [PROBED]


def test_missing_images_are_reported_with_the_machine_s_name(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path / "nowhere"))

    with pytest.raises(DataError) as caught:
        supervisor.begin(worker_context(tmp_path, ELSEWHERE), "ray-0")

    assert str(caught.value).startswith(f"On {platform.node()}: ")
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_logs_go_to_a_folder_of_the_machine_s_own(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    supervisor.begin(worker_context(tmp_path / "nowhere"), "ray-3")

    assert not (tmp_path / "nowhere").exists()
    assert [log.parent.name for log in tmp_path.glob("fashion-study-logs-*/**/worker-0.log")] == ["ray-3"]
