"""The promises of `python -m experiments.doctor`, on a study that was killed for real."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from tests.faults.table import RecordFault
from tests.support.optuna_client import trials_of
from tests.support.processes import started_process

ROOT = Path(__file__).parents[2]
STUDY = "digits-smoke"
# Several starts of TensorFlow in a row, beside whatever else runs.
PATIENCE = 600


def python(module: str, *words: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, words)]


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        # Wide enough for a table's cells to stay in one line each.
        env=os.environ | {"COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def doctor(store: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(python("experiments.doctor", "--store", store, *options))


def study(store: Path) -> list[str]:
    fixed = ("--space", "smoke", "--dataset", "digits", "--precision", "float32", "--finalists", "0")
    return python("experiments.run_study", *fixed, "--trials", "3", "--workers", "1", "--store", store)


def trials(store: Path) -> dict[int, FrozenTrial]:
    return {trial.number: trial for trial in trials_of(store, STUDY)}


def statuses(store: Path) -> list[str]:
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    return [run.info.status for run in client.search_runs([e.experiment_id for e in client.search_experiments()])]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kill a study in the middle of its second trial."""
    store = tmp_path_factory.mktemp("killed") / "store"
    with started_process(
        study(store), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "trial 001 started" in line:
                break
        assert process.poll() is None, "".join(seen)
        process.send_signal(signal.SIGSTOP)
        examined = doctor(store)
        process.send_signal(signal.SIGKILL)
    # What was said of it while it was alive.
    (store / "examined.txt").write_text(f"{examined.returncode}\n{process.pid}\n{examined.stdout}")
    return store


@pytest.mark.faults
def test_a_living_study_is_named_with_its_process(killed: Path) -> None:
    code, pid, *said = (killed / "examined.txt").read_text().splitlines()
    assert code == "0", said
    assert any(line.startswith(f"Study {STUDY} is being run by process {pid} ") for line in said)


@pytest.mark.faults
def test_after_a_kill_it_lists_mends_and_lets_the_study_finish(killed: Path, record_fault: RecordFault) -> None:
    finished = {number: trial.values for number, trial in trials(killed).items() if trial.state.is_finished()}
    assert "RUNNING" in statuses(killed)

    found = doctor(killed)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "trial 001: was" in found.stdout
    assert "study without a process" in found.stdout
    assert "experiments.doctor --fix" in found.stdout
    assert "RUNNING" in statuses(killed)

    repaired = doctor(killed, "--fix")
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert "0 left" in repaired.stdout
    assert "RUNNING" not in statuses(killed)
    assert {trial.state for trial in trials(killed).values()} <= {TrialState.COMPLETE, TrialState.WAITING}

    again = doctor(killed, "--fix")
    assert (again.returncode, again.stdout) == (0, f"Nothing is wrong with {killed}.\n")

    done = run(study(killed))
    assert done.returncode == 0, done.stdout + done.stderr
    now = trials(killed)
    assert sorted(now) == [0, 1, 2]
    assert all(trial.state.is_finished() or trial.user_attrs.get("paused_at") for trial in now.values())
    assert {number: now[number].values for number in finished} == finished
    assert doctor(killed).returncode == 0
    record_fault("SIGKILL of a real Keras study", "I1 I2 I5 I6", phases={"epoch": 1})


def test_a_store_that_cannot_be_read_ends_with_3(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_text("no database " * 1000)
    (tmp_path / "mlflow.db").write_text("no database " * 1000)
    done = doctor(tmp_path)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_help_and_refusals_wait_for_none_of_the_slow_libraries(tmp_path: Path) -> None:
    code = """
import sys
from experiments.doctor import main
from pathlib import Path
try:
    main(store=Path(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, sorted({"keras", "mlflow", "optuna", "tensorflow"} & set(sys.modules)))
"""
    done = run([sys.executable, "-c", code, str(tmp_path / "nothing")])
    assert done.stdout == "StoreError []\n", done.stderr
