"""The promises of a restart: what a kill left running waits again, and no result is trained twice."""

import json
import os
import signal
import sqlite3
import sys
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from fashion_study.store.store import Store, open_store
from fashion_study.store.trials import MAX_RETRIES, TrialStorage
from fashion_study.study.reconcile import disagreements, reconcile
from fashion_study.tracking.attempt import run_name
from fashion_study.tracking.runs import StudyMetadata, StudyRuns
from fashion_study.trial import FailReason, Hyperparameters, Precision, TrialResult, TrialSpec, TrialState
from tests.faults.commits import on_every_commit
from tests.faults.launcher import SLOW_IMPORTS
from tests.faults.table import RecordFault

ENDINGS = (
    TrialResult(0, 1, TrialState.COMPLETE, 1, 0.5, metrics={"objective": 0.5}),
    TrialResult(1, 1, TrialState.PRUNED, 1),
    TrialResult(2, 1, TrialState.FAILED, 1, reason=FailReason.DIVERGED, message="The loss became nan."),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def client(store: Store) -> MlflowClient:
    return store.client()


class Killed:
    """A study on a real store, of which no process is left."""

    def __init__(self, store: Store, client: MlflowClient, name: str) -> None:
        self.store, self.client, self.name = store, client, name
        self.trial_storage = TrialStorage(store.open_optuna_storage(), name)
        self.experiment_id = store.experiment_id(client, "digits")
        self.runs = StudyRuns(client, self.experiment_id, self.trial_storage.attrs.get("run_id"))
        self.study_run = self.runs.open_study(StudyMetadata(name, "", {}, {}), None)
        self.trial_storage.set_attrs(run_id=self.study_run)

    def begin(self, until_superseded: bool = True) -> tuple[int, str]:
        """Begin the next trial, as engine and coordinator do; return its number and its run."""
        trial = self.trial_storage.study.ask()
        attempt = int(trial.user_attrs.get("attempt", 0)) + 1
        run_id = self.runs.open_trial(trial.number, attempt, {}, {})
        self.trial_storage.begin_attempt(trial.number, attempt, run_id)
        if "run_id" in trial.user_attrs and until_superseded:
            self.runs.supersede(trial.user_attrs["run_id"], run_id)
        return trial.number, run_id

    def close(self, begun: tuple[int, str], result: TrialResult, repeat: int = 0) -> None:
        """Close the run of an attempt as the coordinator does; the trial storage has no result of it."""
        spec = TrialSpec(begun[0], result.attempt, Hyperparameters(), 0, begun[1], Precision.FLOAT32, repeat)
        self.runs.close_trial(spec, result)

    def status(self, run_id: str) -> tuple[str, str]:
        run = self.client.get_run(run_id)
        return run.info.status, run.data.tags["state"]


@pytest.fixture
def killed(store: Store, client: MlflowClient, request: pytest.FixtureRequest) -> Killed:
    return Killed(store, client, request.node.name)


def test_trials_left_running_wait_and_their_runs_are_killed(killed: Killed) -> None:
    (first, first_run), (second, second_run) = killed.begin(), killed.begin()

    lines = reconcile(killed.trial_storage, killed.runs)

    assert [record.state for record in killed.trial_storage.records()] == [TrialState.WAITING] * 2
    for run_id in (first_run, second_run):
        assert killed.status(run_id) == ("KILLED", "interrupted")
        assert killed.client.get_run(run_id).data.tags["cause"] == "the coordinator died"
    assert lines == [
        f"trial {number:03d} was interrupted in attempt 1; it is waiting now" for number in (first, second)
    ]
    assert killed.begin()[0] == first


def test_what_has_ended_is_left_alone(killed: Killed) -> None:
    for result in ENDINGS:
        killed.close(killed.begin(), result)
        killed.trial_storage.close(result)
    killed.runs.log_best(1, 0.5)
    before = killed.trial_storage.records()

    assert reconcile(killed.trial_storage, killed.runs) == []

    assert killed.trial_storage.records() == before


def test_a_pending_model_fails_and_those_of_others_stay(killed: Killed, store: Store, client: MlflowClient) -> None:
    _, run_id = killed.begin()
    abandoned = client.create_logged_model(killed.experiment_id, name="model", source_run_id=run_id)
    other = Killed(store, client, "another study")
    _, run_of_other = other.begin()
    of_other = client.create_logged_model(other.experiment_id, name="model", source_run_id=run_of_other)

    lines = reconcile(killed.trial_storage, killed.runs)

    assert lines[1:] == [
        f"model {abandoned.model_id} of run {run_id} was interrupted while it was logged; it is FAILED"
    ]
    assert client.get_logged_model(abandoned.model_id).status is LoggedModelStatus.FAILED
    assert client.get_logged_model(of_other.model_id).status is LoggedModelStatus.PENDING
    assert reconcile(killed.trial_storage, killed.runs) == []


def test_after_three_retries_an_attempt_cut_off_is_the_last(killed: Killed) -> None:
    for attempt in range(1, MAX_RETRIES + 2):
        number, _ = killed.begin()
        (line,) = reconcile(killed.trial_storage, killed.runs)
        assert line.startswith(f"trial {number:03d} was interrupted in attempt {attempt}")

    (record,) = killed.trial_storage.records()
    assert (record.state, record.reason) == (TrialState.FAILED, FailReason.INTERRUPTED)
    assert record.cause == "the coordinator died"
    assert "failed" in line
    assert killed.status(str(record.run_id)) == ("FAILED", "failed")
    assert [attempt.status for attempt in killed.runs.attempts()] == ["KILLED"] * MAX_RETRIES + ["FAILED"]


def test_an_attempt_superseded_before_its_end_is_no_orphan(killed: Killed) -> None:
    number, first = killed.begin()
    killed.trial_storage.requeue(number)
    _, second = killed.begin()

    lines = reconcile(killed.trial_storage, killed.runs)

    assert [killed.status(run_id) for run_id in (first, second)] == [("KILLED", "interrupted")] * 2
    tags = killed.client.get_run(first).data.tags
    assert (tags["superseded_by"], "orphan" in tags) == (second, False)
    assert sorted(line.split(";")[0] for line in lines) == [
        "trial 000 was interrupted in attempt 1",
        "trial 000 was interrupted in attempt 2",
    ]


def test_a_run_of_no_attempt_is_ended_and_marked(killed: Killed) -> None:
    orphan = killed.runs.open_trial(5, 1, {}, {})

    (line,) = reconcile(killed.trial_storage, killed.runs)

    assert orphan in line
    assert "005" in line
    assert killed.status(orphan) == ("KILLED", "interrupted")
    assert "orphan" in killed.client.get_run(orphan).data.tags


def test_a_second_run_of_the_study_is_ended_and_marked(killed: Killed) -> None:
    metadata = StudyMetadata(killed.name, "", {}, {})
    second = StudyRuns(killed.client, killed.experiment_id)
    nameless = second.open_study(metadata, None, killed.trial_storage.token)

    (line,) = reconcile(killed.trial_storage, killed.runs)

    assert nameless in line
    found = killed.client.get_run(nameless)
    assert (found.info.status, found.data.tags["orphan"]) == ("KILLED", "true")
    assert killed.client.get_run(killed.study_run).info.status == "RUNNING"
    assert nothing_is_left(killed)


def test_killed_as_an_attempt_begins_its_number_is_not_reused(killed: Killed, monkeypatch: pytest.MonkeyPatch) -> None:
    write = TrialStorage._set_attr
    written: list[str] = []

    def killed_before_the_second(trial_storage: TrialStorage, number: int, key: str, value: object) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(key)
        write(trial_storage, number, key, value)

    with monkeypatch.context() as patched:
        patched.setattr(TrialStorage, "_set_attr", killed_before_the_second)
        with pytest.raises(KeyboardInterrupt):
            killed.begin()
    reconcile(killed.trial_storage, killed.runs)
    killed.begin()

    numbers = [attempt.number for attempt in killed.runs.attempts()]
    assert len(set(numbers)) == len(numbers) == 2


def test_a_proposal_no_worker_had_begun_waits_without_attempt(killed: Killed) -> None:
    killed.trial_storage.study.ask()

    (line,) = reconcile(killed.trial_storage, killed.runs)

    assert "no worker had begun it" in line
    (record,) = killed.trial_storage.records()
    assert (record.state, record.attempt, record.run_id) == (TrialState.WAITING, 0, None)


@pytest.mark.parametrize("is_ended", [False, True], ids=["tagged", "closed"])
def test_an_unrecorded_result_is_not_trained_twice(killed: Killed, is_ended: bool) -> None:
    runs = []
    for result in ENDINGS:
        runs.append(killed.begin()[1])
        killed.trial_storage.record_value(result.number, 1, 0.25)
        killed.close((result.number, runs[-1]), result)
        if not is_ended:
            killed.client.update_run(runs[-1], status="RUNNING")

    lines = reconcile(killed.trial_storage, killed.runs)

    records = killed.trial_storage.records()
    assert [record.state for record in records] == [result.state for result in ENDINGS]
    assert [record.objective for record in records] == [0.5, None, None]
    assert [record.reason for record in records] == [None, None, FailReason.DIVERGED]
    assert [record.cause for record in records] == ["", "", ENDINGS[2].cause]
    assert [record.run_id for record in records] == runs
    assert all(record.seconds is not None for record in records)
    assert killed.trial_storage.trial(1).value == 0.25
    assert [killed.status(run_id)[0] for run_id in runs] == ["FINISHED", "KILLED", "FAILED"]
    assert [killed.client.get_run(run_id).info.run_name for run_id in runs] == [run_name(one) for one in ENDINGS]
    assert all("its result is not in the trial storage" in line for line in lines[:3])
    assert killed.client.get_run(killed.study_run).data.metrics["best_objective"] == 0.5


def test_a_result_of_a_trial_sent_back_to_waiting_counts(killed: Killed) -> None:
    begun = killed.begin()
    killed.close(begun, ENDINGS[0])
    killed.trial_storage.requeue_unstarted(begun[0])

    reconcile(killed.trial_storage, killed.runs)

    assert killed.trial_storage.records()[0].objective == 0.5


def test_a_trial_s_earlier_runs_name_their_successor(killed: Killed) -> None:
    first = killed.begin(until_superseded=False)[1]
    reconcile(killed.trial_storage, killed.runs)
    second = killed.begin(until_superseded=False)[1]
    reconcile(killed.trial_storage, killed.runs)
    third = killed.begin(until_superseded=False)[1]

    reconcile(killed.trial_storage, killed.runs)

    superseded = [killed.client.get_run(run_id).data.tags.get("superseded_by") for run_id in (first, second, third)]
    assert superseded == [second, third, None]


def test_a_finalist_s_repeat_keeps_its_result_or_is_ended(killed: Killed) -> None:
    lost = killed.runs.open_trial(0, 1, {}, {}, repeat=1)
    done = killed.runs.open_trial(0, 2, {}, {}, repeat=1)
    killed.close((0, done), replace(ENDINGS[0], attempt=2), repeat=1)
    killed.client.update_run(done, status="RUNNING")

    reconcile(killed.trial_storage, killed.runs)

    assert killed.status(lost) == ("KILLED", "interrupted")
    assert killed.status(done) == ("FINISHED", "complete")
    assert killed.client.get_run(lost).data.tags["superseded_by"] == done
    assert killed.client.get_run(done).info.run_name == "000 r1  0.5000"


def test_a_deleted_run_is_restored_where_its_trial_goes_on(killed: Killed) -> None:
    begun = killed.begin()
    killed.client.delete_run(begun[1])

    reconcile(killed.trial_storage, killed.runs)

    assert killed.client.get_run(begun[1]).info.lifecycle_stage == "active"
    assert killed.status(begun[1]) == ("KILLED", "interrupted")
    assert killed.trial_storage.records()[0].state is TrialState.WAITING


def test_a_run_that_was_deleted_after_its_end_stays_deleted(killed: Killed) -> None:
    begun = killed.begin()
    killed.close(begun, ENDINGS[0])
    killed.trial_storage.close(ENDINGS[0])
    killed.runs.log_best(1, 0.5)
    killed.client.delete_run(begun[1])

    assert reconcile(killed.trial_storage, killed.runs) == []

    assert killed.client.get_run(begun[1]).info.lifecycle_stage == "deleted"
    assert killed.trial_storage.records()[0].objective == 0.5


def test_a_run_gone_for_good_costs_its_attempt_but_no_result(killed: Killed) -> None:
    ended, abandoned = killed.begin(), killed.begin()
    killed.close(ended, ENDINGS[0])
    killed.trial_storage.close(ENDINGS[0])
    killed.runs.log_best(1, 0.5)
    for number in (ended[0], abandoned[0]):
        with sqlite3.connect(killed.store.root / "optuna.db") as connection:
            connection.execute(
                "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'run_id' AND trial_id = ?",
                (json.dumps(f"{number:032d}"), killed.trial_storage.trial(number)._trial_id),
            )
    killed = Killed(killed.store, killed.client, killed.name)

    # The runs that no trial names any more are orphans.
    assert len(reconcile(killed.trial_storage, killed.runs)) == 2
    assert len(repair_everything(killed)) == 2

    first, second = killed.trial_storage.records()
    assert (first.state, first.objective) == (TrialState.COMPLETE, 0.5)
    assert (second.state, second.run_id) == (TrialState.WAITING, None)
    assert nothing_is_left(killed)


def test_what_no_kill_did_to_an_ended_trial_is_the_doctors(killed: Killed) -> None:
    begun = killed.begin()
    killed.close(begun, ENDINGS[0])
    killed.trial_storage.close(ENDINGS[0])
    killed.runs.log_best(1, 0.5)
    killed.client.set_tag(begun[1], "state", "pruned")

    assert reconcile(killed.trial_storage, killed.runs) == []
    assert len(repair_everything(killed)) == 1

    assert killed.status(begun[1]) == ("FINISHED", "complete")
    assert nothing_is_left(killed)


def repair_everything(killed: Killed) -> list[str]:
    """Repair as the doctor does, which looks at every run."""
    return [found.repair() for found in disagreements(killed.trial_storage, killed.runs) if found.repair]


def nothing_is_left(killed: Killed) -> bool:
    """Say whether neither the next start nor the doctor finds anything."""
    return reconcile(killed.trial_storage, killed.runs) == [] == list(disagreements(killed.trial_storage, killed.runs))


def reconcile_and_die(root: Path, name: str, number: int) -> None:
    """Reconcile a study in a process that is killed before its nth commit of a change, in either database; 0: never."""
    store = open_store(root)
    killed = Killed(store, store.client(), name)
    commits = 0

    def count() -> None:
        nonlocal commits
        commits += 1
        if commits == number:
            os.kill(os.getpid(), signal.SIGKILL)

    on_every_commit(before=count)
    reconcile(killed.trial_storage, killed.runs)
    sys.exit(commits)


def ended_with(store: Store, name: str, number: int) -> int | None:
    """Run `reconcile_and_die` in a process that has the libraries already; return its exit code."""
    context = get_context("forkserver")
    context.set_forkserver_preload(SLOW_IMPORTS)
    process = context.Process(target=reconcile_and_die, args=(store.root, name, number))
    process.start()
    process.join()
    return process.exitcode


def wreck(killed: Killed) -> None:
    """Leave something of everything that can be cut off, first a trial that is given up by it."""
    for _ in range(MAX_RETRIES):
        number, run_id = killed.begin()
        killed.runs.interrupt_trial(number, run_id, "A test.", killed.trial_storage.requeue(number))
    killed.begin(until_superseded=False)
    killed.begin()
    for result in ENDINGS:
        begun = killed.begin()
        killed.close(begun, replace(result, number=begun[0]))
    killed.runs.open_trial(9, 1, {}, {})
    killed.runs.open_trial(1, 2, {}, {}, repeat=1)
    killed.trial_storage.study.ask()


def outcome(killed: Killed) -> object:
    """Say where a study stands, without the ids and the times that differ from one to the next."""
    records = [
        (record.number, record.state, record.objective, record.reason) for record in killed.trial_storage.records()
    ]
    found = killed.client.search_runs([killed.experiment_id], f"tags.study = '{killed.name}'")
    runs = [
        (run.info.run_name, run.info.status, run.data.tags["state"], "orphan" in run.data.tags)
        for run in found
        if run.info.run_id != killed.study_run
    ]
    return records, sorted(runs, key=str), killed.client.get_run(killed.study_run).data.metrics


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_killed_at_any_commit_it_does_what_is_left_the_next_time(
    store: Store, client: MlflowClient, record_fault: RecordFault
) -> None:
    whole = Killed(store, client, "never killed")
    wreck(whole)
    commits = ended_with(store, whole.name, 0)
    assert commits is not None
    assert commits > 20
    whole = Killed(store, client, whole.name)

    for number in range(1, commits + 1):
        killed = Killed(store, client, f"killed {number}")
        wreck(killed)
        assert ended_with(store, killed.name, number) == -signal.SIGKILL
        killed = Killed(store, client, killed.name)

        reconcile(killed.trial_storage, killed.runs)

        assert outcome(killed) == outcome(whole)
        assert nothing_is_left(killed)
    record_fault(
        "SIGKILL of the next start while it repairs what a kill left", "I1 I2 I3", commits, {"opening": commits}
    )
