"""A study of real Keras trials, sent Ctrl-C, SIGTERM and SIGKILL, and what the next start makes of it."""

import re
import shlex
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState

from tests.faults.table import RecordFault
from tests.support.processes import started_process
from tests.support.study_command import PATIENCE, ROOT, Evidence, Start, command, read_back, start

pytestmark = pytest.mark.faults


@dataclass(frozen=True, eq=False)
class Ending:
    """How a study ended that was sent signals, and what it left behind for the next start of it."""

    store: Path
    exit_code: int
    output: str
    errors: str
    surviving_workers: list[psutil.Process]
    evidence: Evidence

    def states(self) -> Counter[TrialState]:
        return Counter(trial.state for trial in self.evidence.trials.values())

    def statuses(self) -> Counter[str]:
        return Counter(run.info.status for run in self.evidence.runs.values())


def end_with(store: Path, *signals: signal.Signals) -> Ending:
    """Send a study the first signal when a trial is complete, a second one when it says that it stops."""
    options = ("--trials", "500", "--workers", "1")
    with started_process(
        command(store, *options), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        workers: list[psutil.Process] = []
        shown = ""
        for number, awaited in zip(signals, (" complete: ", " stopped from outside "), strict=False):
            shown += read_up_to(awaited, process)
            workers = workers or psutil.Process(process.pid).children(recursive=True)
            process.send_signal(number)
        output, errors = process.communicate(timeout=PATIENCE)
    assert workers
    _, surviving = psutil.wait_procs(workers, timeout=30)
    return Ending(store, process.returncode, shown + output, errors, surviving, read_back(store))


def read_up_to(text: str, process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"The study ended before it said {text!r}: {lines}")


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Ending:
    return end_with(tmp_path_factory.mktemp("interrupted") / "store", signal.SIGINT)


@pytest.fixture(scope="module")
def stopped_twice(stopped_once: Ending) -> Ending:
    return end_with(stopped_once.store, signal.SIGINT, signal.SIGINT)


@pytest.fixture(scope="module")
def killed(stopped_twice: Ending) -> Ending:
    return end_with(stopped_twice.store, signal.SIGKILL)


@pytest.fixture(scope="module")
def terminated(killed: Ending) -> Ending:
    return end_with(killed.store, signal.SIGTERM)


@pytest.fixture(scope="module")
def terminated_twice(terminated: Ending) -> Ending:
    return end_with(terminated.store, signal.SIGTERM, signal.SIGTERM)


@pytest.fixture(scope="module")
def finished(terminated_twice: Ending) -> Start:
    total = len(terminated_twice.evidence.trials)
    copy_to = terminated_twice.store.parent / "finished"
    return start(terminated_twice.store, copy_to, "--trials", str(total), "--workers", "1")


def test_one_ctrl_c_ends_a_study_cleanly(stopped_once: Ending, record_fault: RecordFault) -> None:
    assert stopped_once.exit_code == 130
    assert stopped_once.errors == ""
    assert "Stopped by Ctrl-C; the unfinished trials wait." in stopped_once.output
    (following,) = re.findall(r"^Go on: +[^ ]*python[^ ]* (.+)$", stopped_once.output, re.MULTILINE)
    assert set(shlex.split(following)) >= set(command(stopped_once.store, "--trials", "500", "--workers", "1")[1:])
    assert stopped_once.surviving_workers == []
    assert stopped_once.states()[TrialState.WAITING] >= 1
    assert stopped_once.states()[TrialState.RUNNING] == 0
    assert stopped_once.statuses()["RUNNING"] == 0
    assert stopped_once.evidence.parent.info.status == "KILLED"
    record_fault("Ctrl-C once", "I2 I6 I8", phases={"tell": 1})


def test_a_second_ctrl_c_ends_it_at_once(stopped_twice: Ending, record_fault: RecordFault) -> None:
    assert stopped_twice.exit_code == 130
    assert "Stopped at once" in stopped_twice.errors
    assert "Traceback" not in stopped_twice.errors
    assert "MLflow UI" not in stopped_twice.output
    assert stopped_twice.surviving_workers == []
    record_fault("Ctrl-C twice", "I6", phases={"tell": 1})


def test_workers_do_not_outlive_a_coordinator_that_is_killed(killed: Ending) -> None:
    assert killed.exit_code == -signal.SIGKILL
    assert killed.surviving_workers == []
    assert killed.states()[TrialState.RUNNING] >= 1
    assert killed.statuses()["RUNNING"] >= 1


def test_the_start_after_a_kill_says_what_it_resumes(
    killed: Ending, terminated: Ending, record_fault: RecordFault
) -> None:
    abandoned = [number for number, trial in killed.evidence.trials.items() if trial.state is TrialState.RUNNING]
    for number in abandoned:
        assert re.search(rf"trial {number:03d} was interrupted in attempt \d; it is waiting now", terminated.output)
    restarted = re.findall(r"trial (\d{3}) started \(attempt \d\)", terminated.output)
    assert min(abandoned) == int(restarted[0])
    record_fault("SIGKILL of a real Keras study", "I8", phases={"tell": 1})


def test_sigterm_ends_a_study_cleanly_with_its_own_exit_code(terminated: Ending, record_fault: RecordFault) -> None:
    assert terminated.exit_code == 143
    assert terminated.errors == ""
    assert terminated.surviving_workers == []
    assert terminated.states()[TrialState.RUNNING] == 0
    assert terminated.statuses()["RUNNING"] == 0
    record_fault("SIGTERM", "I2 I6 I8", phases={"tell": 1})


def test_a_second_sigterm_ends_it_at_once_with_its_own_exit_code(
    terminated_twice: Ending, record_fault: RecordFault
) -> None:
    assert terminated_twice.exit_code == 143
    assert "Stopped at once" in terminated_twice.errors
    assert "Traceback" not in terminated_twice.errors
    assert "MLflow UI" not in terminated_twice.output
    assert terminated_twice.surviving_workers == []
    record_fault("SIGTERM twice", "I6", phases={"tell": 1})


def test_a_study_stopped_repeatedly_still_reaches_its_total(finished: Start) -> None:
    assert finished.exit_code == 0, finished.errors
    trials = finished.evidence.trials
    assert sorted(trials) == list(range(len(trials)))
    assert {trial.state for trial in trials.values()} <= {TrialState.COMPLETE, TrialState.WAITING}
    assert f"{len(trials)} of {len(trials)} trials done" in finished.output
    assert finished.evidence.parent.info.status == "FINISHED"
    assert {run.info.status for run in finished.evidence.runs.values()} <= {"FINISHED", "KILLED", "SCHEDULED"}


def test_a_trial_keeps_parameters_and_seed_over_attempts(finished: Start) -> None:
    for number in finished.evidence.trials:
        attempts = [run for run in finished.evidence.runs.values() if run.data.tags["trial"] == str(number)]
        assert len({run.data.tags["seed"] for run in attempts}) == 1
        assert len({tuple(sorted(run.data.params.items())) for run in attempts}) == 1


def test_every_trial_has_one_current_run(finished: Start, record_fault: RecordFault) -> None:
    evidence = finished.evidence
    replaced = {run_id: run for run_id, run in evidence.runs.items() if "superseded_by" in run.data.tags}
    current = {run_id: run for run_id, run in evidence.runs.items() if run_id not in replaced}
    assert {run_id: int(run.data.tags["trial"]) for run_id, run in current.items()} == {
        trial.user_attrs["run_id"]: number for number, trial in evidence.trials.items()
    }
    assert len(replaced) >= 4
    for run in replaced.values():
        successor = evidence.runs[run.data.tags["superseded_by"]]
        assert successor.data.tags["trial"] == run.data.tags["trial"]
        assert int(successor.data.tags["attempt"]) == int(run.data.tags["attempt"]) + 1
        assert (run.info.status, run.data.tags["state"]) == ("KILLED", "interrupted")
        assert run.info.run_name == f"{int(run.data.tags['trial']):03d}  interrupted"
    record_fault("SIGKILL of a real Keras study", "I2 I3 I5", phases={"epoch": 1})


def test_killed_among_finalists_the_missing_repeat_is_trained(tmp_path: Path, record_fault: RecordFault) -> None:
    options = ("--trials", "1", "--workers", "1", "--finalists", "1", "--repeats", "2")
    with started_process(command(tmp_path / "store", *options), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        read_up_to("trial 000 repeat 2 started", process)
        process.kill()
        process.communicate(timeout=PATIENCE)
    before = {run.data.tags["repeat"]: run for run in read_back(tmp_path / "store").repeats}
    assert {repeat: run.data.tags["state"] for repeat, run in before.items()} == {"1": "complete", "2": "running"}

    resumed = start(tmp_path / "store", tmp_path / "resumed", *options)

    assert resumed.exit_code == 0, resumed.output + resumed.errors
    runs = {run.info.run_id: run for run in resumed.evidence.repeats}
    assert runs[before["1"].info.run_id].info.status == "FINISHED"
    (current,) = runs.keys() - {run.info.run_id for run in before.values()}
    abandoned = runs[before["2"].info.run_id]
    assert (runs[current].info.status, runs[current].data.tags["repeat"]) == ("FINISHED", "2")
    assert (abandoned.info.status, abandoned.data.tags["superseded_by"]) == ("KILLED", current)
    assert runs[current].data.tags["seed"] == abandoned.data.tags["seed"]
    (version,) = resumed.evidence.client.search_model_versions("name = 'digits-cnn'")
    assert version.run_id in {before["1"].info.run_id, current}
    record_fault("SIGKILL of a real Keras study", "I2 I3 I4 I6", phases={"finalists": 1})
