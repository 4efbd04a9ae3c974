"""The promises of every executor."""

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest

from fashion_study.errors import DataError, StudyError
from fashion_study.executors.executor import Event, Executor
from fashion_study.testing.memory import MemoryExecutor
from fashion_study.testing.training import PROBED, Key, SimulatedOutcome, toy_report, toy_result
from fashion_study.trial import (
    AttemptLost,
    DataSource,
    EpochReport,
    FailReason,
    Hyperparameters,
    Precision,
    ProbeOrder,
    TrialResult,
    TrialSpec,
    TrialState,
    WorkerSettings,
)
from tests.support.processes import has_ended, workers_running

PYTHONPATH = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
TOY = "tests.executors.toy_worker"
SETTINGS = WorkerSettings(DataSource("digits", None, "d" * 64), None, 1, "sqlite:///nowhere.db")
PATIENCE = 60

Make = Callable[[int, Mapping[Key, SimulatedOutcome]], Executor]
MakeProcesses = Callable[..., Executor]
MEBIBYTE = 2**20


def spec(number: int, attempt: int = 1, epochs: int = 2) -> TrialSpec:
    return TrialSpec(number, attempt, Hyperparameters(epochs=epochs), 0, f"run-{number}-{attempt}", Precision.FLOAT32)


def follow(executor: Executor, ends: int, prune: Callable[[EpochReport], bool] = lambda _: False) -> list[Event]:
    """Answer reports until as many attempts have ended; return everything that was sent."""
    events: list[Event] = []
    begun = time.monotonic()
    while sum(not isinstance(event, EpochReport) for event in events) < ends:
        assert time.monotonic() - begun < PATIENCE, events
        for event in executor.wait(0.25):
            events.append(event)
            if isinstance(event, EpochReport):
                executor.answer(event, prune=prune(event))
    return events


def first_report(executor: Executor) -> EpochReport:
    """Wait for the first report of the one attempt that runs."""
    begun = time.monotonic()
    while not (events := executor.wait(0.25)):
        assert time.monotonic() - begun < PATIENCE
    (report,) = events
    assert isinstance(report, EpochReport)
    return report


class ExecutorContract:
    """The promises of an executor; `make` builds one for a number of workers and the outcomes of attempts."""

    def test_an_attempt_reports_each_epoch_and_then_its_result(self, make: Make) -> None:
        executor = make(1, {})
        asked = spec(3, epochs=3)

        executor.submit(asked)

        reports = [toy_report(asked, epoch) for epoch in (1, 2, 3)]
        assert follow(executor, ends=1) == [*reports, toy_result(asked, TrialState.COMPLETE, 3)]
        assert executor.wait(0.01) == []

    def test_nothing_happens_before_a_report_is_answered(self, make: Make) -> None:
        executor = make(1, {})
        executor.submit(spec(0))
        report = first_report(executor)
        assert [executor.wait(0.05) for _ in range(3)] == [[]] * 3

        executor.answer(report, prune=False)

        assert len(follow(executor, ends=1)) == 2

    def test_a_prune_decision_ends_the_attempt_as_pruned(self, make: Make) -> None:
        executor = make(1, {})
        asked = spec(0, epochs=9)
        executor.submit(asked)

        events = follow(executor, ends=1, prune=lambda report: report.epoch == 2)

        assert events[2:] == [toy_result(asked, TrialState.PRUNED, 2)]

    def test_attempts_run_side_by_side_with_their_own_decisions(self, make: Make) -> None:
        executor = make(2, {})
        assert executor.slots == 2
        for number in (0, 1):
            executor.submit(spec(number, epochs=3))

        events = follow(executor, ends=2, prune=lambda report: report.number == 1)

        ends = {event.number: event.state for event in events if isinstance(event, TrialResult)}
        assert ends == {0: TrialState.COMPLETE, 1: TrialState.PRUNED}

    def test_a_slot_is_free_again_after_any_end(self, make: Make) -> None:
        executor = make(
            1, {(0, 1): SimulatedOutcome.ERROR, (1, 1): SimulatedOutcome.DIVERGED, (2, 1): SimulatedOutcome.LOST}
        )
        ends = []
        for asked in (spec(0), spec(1), spec(2), spec(2, attempt=2)):
            executor.submit(asked)
            ends.append(follow(executor, ends=1)[-1])

        assert ends == [
            toy_result(spec(0), TrialState.FAILED, 1, FailReason.ERROR),
            toy_result(spec(1), TrialState.FAILED, 1, FailReason.DIVERGED),
            AttemptLost(2, 1, "signal SIGKILL"),
            toy_result(spec(2, attempt=2), TrialState.COMPLETE, 2),
        ]
        assert executor.slots == 1

    def test_an_attempt_that_is_lost_leaves_the_others_alone(self, make: Make) -> None:
        executor = make(2, {(0, 1): SimulatedOutcome.LOST})
        for number in (0, 1):
            executor.submit(spec(number, epochs=4))

        ends = [event for event in follow(executor, ends=2) if not isinstance(event, EpochReport)]

        assert AttemptLost(0, 1, "signal SIGKILL") in ends
        assert toy_result(spec(1, epochs=4), TrialState.COMPLETE, 4) in ends

    def test_precision_is_probed(self, make: Make) -> None:
        assert make(1, {}).probe(ProbeOrder()) == PROBED

    def test_a_cancelled_probe_ends_without_a_result(self, make: Make) -> None:
        assert make(1, {}).probe(ProbeOrder(), lambda: True) is None

    def test_it_stops_within_an_attempt_and_may_be_stopped_twice(self, make: Make) -> None:
        executor = make(2, {(0, 1): SimulatedOutcome.STUCK})
        executor.submit(spec(0))
        executor.answer(first_report(executor), prune=False)

        executor.close()
        executor.close()


class TestMemoryExecutor(ExecutorContract):
    @pytest.fixture
    def make(self) -> Make:
        return MemoryExecutor


def end_of(executor: Executor) -> Event:
    """Return how the one attempt that runs ends."""
    return follow(executor, ends=1)[-1]


def wait_for_report(executor: Executor) -> None:
    """Let the one running attempt reach its outcome."""
    executor.answer(first_report(executor), prune=False)
    time.sleep(0.5)


def workers_of(pid: int) -> list[psutil.Process]:
    """Find the living worker processes of a coordinator."""
    return workers_running(TOY, pid)


def await_workers(count: int, pid: int | None = None) -> list[psutil.Process]:
    """Wait until so many live below a process: they are started by processes of their own."""
    give_up = time.monotonic() + PATIENCE
    while len(workers := workers_of(pid or os.getpid())) != count:
        assert time.monotonic() < give_up, workers
        time.sleep(0.05)
    return workers


def kill_the_worker() -> None:
    """Kill this process's one worker."""
    (worker,) = await_workers(1)
    worker.kill()
    await_the_end(worker)


def await_the_end(worker: psutil.Process) -> None:
    """Wait for a worker's end, and leave its exit status to the executor."""
    begun = time.monotonic()
    while not has_ended(worker):
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.01)


class ProcessContract(ExecutorContract):
    """More promises of an executor with real worker processes; `make` takes limits too.

    The outcomes and the variables `TOY_...` of the environment are those of the toy worker.
    """

    def test_a_worker_that_dies_is_replaced_at_once(self, make: MakeProcesses) -> None:
        executor = make(2, {(0, 1): SimulatedOutcome.LOST})
        before = {process.pid for process in await_workers(2)}
        executor.submit(spec(0))

        follow(executor, ends=1)

        after = {process.pid for process in await_workers(2)}
        assert len(before & after) == 1

    def test_a_worker_that_died_between_two_attempts_costs_none(self, make: MakeProcesses) -> None:
        executor = make(1, {})
        executor.submit(spec(0))
        end_of(executor)
        kill_the_worker()

        executor.submit(spec(1))

        assert end_of(executor) == toy_result(spec(1), TrialState.COMPLETE, 2)

    def test_an_answer_to_a_worker_that_died_meanwhile_is_dropped(self, make: MakeProcesses) -> None:
        executor = make(1, {})
        executor.submit(spec(0))
        report = first_report(executor)
        kill_the_worker()

        executor.answer(report, prune=False)

        assert follow(executor, ends=1) == [AttemptLost(0, 1, "signal SIGKILL")]

    def test_a_worker_that_cannot_begin_its_work_says_why(
        self, make: MakeProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_BROKEN", "1")
        executor = make(1, {})

        with pytest.raises(StudyError, match="no data for digits"):
            executor.probe(ProbeOrder())

    def test_bad_data_found_by_a_worker_stay_a_matter_of_data(
        self, make: MakeProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_BROKEN", "data")

        with pytest.raises(DataError, match="the images are gone"):
            make(1, {}).probe(ProbeOrder())

    def test_an_attempt_is_lost_with_the_cause_of_its_worker_s_end(self, make: MakeProcesses) -> None:
        executor = make(1, {(0, 1): "segfault", (1, 1): "store"})
        ends = []
        for number in (0, 1):
            executor.submit(spec(number))
            ends.append(end_of(executor))

        assert ends == [
            AttemptLost(0, 1, "signal SIGSEGV"),
            AttemptLost(1, 1, "the store failed: disk full", by_store=True),
        ]

    def test_a_hanging_attempt_fails_and_its_worker_is_replaced(self, make: MakeProcesses) -> None:
        hangs_and_fails("stopped", make)

    def test_an_attempt_that_takes_too_much_memory_fails(self, make: MakeProcesses) -> None:
        executor = make(1, {(0, 1): "hungry"}, worker_memory=200 * MEBIBYTE)
        executor.submit(spec(0))

        end = end_of(executor)

        assert isinstance(end, TrialResult)
        assert (end.state, end.reason, end.epochs_run) == (TrialState.FAILED, FailReason.OOM, 1)
        assert re.search(r"more than --worker-memory allows \(\d+ MiB were seen\)", end.message)
        executor.submit(spec(1))
        assert end_of(executor) == toy_result(spec(1), TrialState.COMPLETE, 2)

    def test_stopping_ends_every_process(self, make: MakeProcesses) -> None:
        executor = make(2, {(0, 1): SimulatedOutcome.STUCK})
        executor.submit(spec(0))
        executor.answer(first_report(executor), prune=False)
        workers = await_workers(2)

        executor.close()

        _, alive = psutil.wait_procs(workers, PATIENCE)
        assert alive == []


def hangs_and_fails(outcome: str, make: MakeProcesses) -> None:
    """Check that an attempt that hangs in this way fails, and that its worker is replaced."""
    executor = make(1, {(0, 1): outcome}, trial_timeout=1)
    executor.submit(spec(0, epochs=3))
    before = await_workers(1)

    end = end_of(executor)

    assert isinstance(end, TrialResult)
    assert (end.state, end.reason, end.epochs_run) == (TrialState.FAILED, FailReason.TIMEOUT, 1)
    assert "1 s of --trial-timeout" in end.message
    assert end.seconds > 1
    assert not any(worker.is_running() for worker in before)
    executor.submit(spec(1, epochs=1))
    assert end_of(executor) == toy_result(spec(1, epochs=1), TrialState.COMPLETE, 1)
