"""The promises of a restart: what a kill left running waits again, and one coordinator at a time owns a study."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient
from optuna.distributions import FloatDistribution

from fashion_study.engines.ledger import MAX_RETURNS, Ledger
from fashion_study.errors import StoreError
from fashion_study.reconcile import reconcile, sole_owner
from fashion_study.tracking.runs import MlflowTracker
from fashion_study.tracking.store import Store, open_store
from fashion_study.tracking.tracker import StudyCard
from fashion_study.trial import FailReason, TrialResult, TrialState

HOLD = """
import sys
from pathlib import Path
from fashion_study.reconcile import sole_owner
with sole_owner(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def client(store: Store) -> MlflowClient:
    return store.client()


class Killed:
    """A study on a real store, of which no process is left."""

    def __init__(self, store: Store, client: MlflowClient, name: str) -> None:
        self.client = client
        self.ledger = Ledger(store.optuna_storage(), name)
        self.tracker = MlflowTracker(client, store.experiment_id(client, "digits"))
        self.tracker.open_study(StudyCard(name, "", {}, {}), (), None)

    def begin(self) -> tuple[int, str]:
        """Begin the next trial, as engine and coordinator do; return its number and its run."""
        trial = self.ledger.study.ask(fixed_distributions={"learning_rate": FloatDistribution(0.0, 1.0)})
        attempt = int(trial.user_attrs.get("attempt", 0)) + 1
        run_id = self.tracker.open_trial(trial.number, attempt, {}, {})
        self.ledger.begin_attempt(trial.number, attempt, run_id)
        return trial.number, run_id

    def status(self, run_id: str) -> tuple[str, str]:
        run = self.client.get_run(run_id)
        return run.info.status, run.data.tags["state"]


@pytest.fixture
def killed(store: Store, client: MlflowClient, request: pytest.FixtureRequest) -> Killed:
    return Killed(store, client, request.node.name)


def test_trials_left_running_wait_and_their_runs_are_killed(killed: Killed) -> None:
    (first, first_run), (second, second_run) = killed.begin(), killed.begin()

    lines = reconcile(killed.ledger, killed.tracker)

    assert [record.state for record in killed.ledger.records()] == [TrialState.WAITING] * 2
    for run_id in (first_run, second_run):
        assert killed.status(run_id) == ("KILLED", "interrupted")
        assert killed.client.get_run(run_id).data.tags["cause"] == "the coordinator died"
    assert lines == [f"trial {number:03d} was cut off in attempt 1; it is waiting now" for number in (first, second)]
    assert killed.begin()[0] == first


def test_what_has_ended_is_left_alone(killed: Killed) -> None:
    number, run_id = killed.begin()
    killed.client.set_terminated(run_id, "FINISHED")
    killed.ledger.close(TrialResult(number, 1, TrialState.COMPLETE, 1, 0.5))
    before = killed.ledger.records()

    assert reconcile(killed.ledger, killed.tracker) == []

    assert killed.ledger.records() == before
    assert killed.status(run_id)[0] == "FINISHED"


def test_after_three_returns_the_attempt_that_is_cut_off_is_the_last(killed: Killed) -> None:
    for attempt in range(1, MAX_RETURNS + 2):
        number, _ = killed.begin()
        (line,) = reconcile(killed.ledger, killed.tracker)
        assert line.startswith(f"trial {number:03d} was cut off in attempt {attempt}")

    (record,) = killed.ledger.records()
    assert (record.state, record.reason) == (TrialState.FAILED, FailReason.INTERRUPTED)
    assert "failed" in line
    assert killed.status(str(record.run_id)) == ("FAILED", "failed")
    assert killed.tracker.open_runs() == {}


def test_a_run_that_was_opened_for_no_attempt_is_ended(killed: Killed) -> None:
    orphan = killed.tracker.open_trial(5, 1, {}, {})

    (line,) = reconcile(killed.ledger, killed.tracker)

    assert orphan in line
    assert "005" in line
    assert killed.status(orphan) == ("KILLED", "interrupted")


def test_a_proposal_that_no_worker_had_begun_waits_and_was_no_attempt(killed: Killed) -> None:
    killed.ledger.study.ask(fixed_distributions={"learning_rate": FloatDistribution(0.0, 1.0)})

    assert reconcile(killed.ledger, killed.tracker) == []

    (record,) = killed.ledger.records()
    assert (record.state, record.attempt, record.run_id) == (TrialState.WAITING, 0, None)


def test_a_run_that_was_closed_before_the_ledger_heard_of_it_keeps_its_status(killed: Killed) -> None:
    number, run_id = killed.begin()
    killed.client.set_terminated(run_id, "FINISHED")

    reconcile(killed.ledger, killed.tracker)

    assert killed.ledger.records()[number].state is TrialState.WAITING
    assert killed.status(run_id)[0] == "FINISHED"


@contextmanager
def held(root: Path, study: str) -> Iterator[subprocess.Popen[str]]:
    """Let another process own the study while the block runs."""
    command = [sys.executable, "-c", HOLD, str(root), study]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_coordinator_is_refused_and_told_who_runs_the_study(tmp_path: Path) -> None:
    with held(tmp_path, "toy") as holder:
        with (
            pytest.raises(StoreError, match=f"process {holder.pid} ") as caught,
            sole_owner(tmp_path, "toy"),
        ):
            pass
        assert sys.executable in str(caught.value)
        assert "--study" in str(caught.value)

        with sole_owner(tmp_path, "another"):
            pass


def test_a_holder_that_is_killed_frees_the_study(tmp_path: Path) -> None:
    with held(tmp_path, "toy") as holder:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()

        with sole_owner(tmp_path, "toy"):
            note = json.loads((tmp_path / "locks" / "toy.json").read_text())
            assert note["pid"] == os.getpid()


def test_a_holder_that_ends_frees_the_study(tmp_path: Path) -> None:
    for _ in range(2):
        with sole_owner(tmp_path, "toy"):
            pass
    assert not (tmp_path / "locks" / "toy.json").exists()


def test_a_holder_that_nobody_can_name_is_another_process(tmp_path: Path) -> None:
    with held(tmp_path, "toy"):
        (tmp_path / "locks" / "toy.json").write_text("{}")

        with pytest.raises(StoreError, match="another process"), sole_owner(tmp_path, "toy"):
            pass
