"""The promises of the doctor: every kind of damage is found, repaired without losing a result, and stays repaired."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from optuna.trial import FrozenTrial, TrialState

from fashion_study.doctor.check import CheckReport, check_store
from fashion_study.errors import StoreError
from fashion_study.finding import Kind
from fashion_study.store.locks import claim
from fashion_study.store.relocation import local_path
from fashion_study.tracking.aliases import promotion_lock
from fashion_study.tracking.registry import CHALLENGER, CHAMPION, LINE, PREVIOUS_CHAMPION, registered_name
from tests.support.finished import copy_store
from tests.support.optuna_client import trials_of

STUDY = "digits-smoke"
NAME = registered_name("digits")
GONE = "0" * 32
Results = tuple[dict[int, Any], dict[str, dict[str, float]]]


class StoreUnderTest:
    """A store of its own, to be damaged, looked at with MLflow's and Optuna's own clients."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.client = MlflowClient(f"sqlite:///{root}/mlflow.db")
        (self.experiment,) = (e.experiment_id for e in self.client.search_experiments() if e.name == "digits")

    def trial_storage(self, study: str = STUDY) -> list[FrozenTrial]:
        return trials_of(self.root, study)

    def runs(self, condition: str = "") -> list[Run]:
        return list(self.client.search_runs([self.experiment], condition, ViewType.ALL))

    def best(self) -> FrozenTrial:
        """Return the trial whose model is the challenger."""
        return max(
            (trial for trial in self.trial_storage() if trial.state is TrialState.COMPLETE),
            key=lambda one: one.values[0],
        )

    def run_of(self, trial: FrozenTrial) -> Run:
        return self.client.get_run(trial.user_attrs["run_id"])

    def study_run(self) -> Run:
        (run,) = self.runs("tags.kind = 'study'")
        return run

    def model_folder(self, run: Run) -> Path:
        model = self.client.get_logged_model(run.data.tags["model_uri"].removeprefix("models:/"))
        folder = local_path(model.artifact_location)
        assert folder is not None
        return folder

    def sql(self, database: str, statement: str, *values: object) -> None:
        with closing(sqlite3.connect(self.root / f"{database}.db")) as connection, connection:
            connection.execute(statement, values)

    def dump(self) -> list[str]:
        """Return everything that both databases hold."""
        lines = []
        for name in ("mlflow", "optuna"):
            with closing(sqlite3.connect(self.root / f"{name}.db")) as connection:
                lines += list(connection.iterdump())
        return lines

    def results(self) -> Results:
        """Return what must never be lost: what has finished, with what it reached."""
        trials = {
            trial.number: (trial.params, trial.values) for trial in self.trial_storage() if trial.state.is_finished()
        }
        runs = {run.info.run_id: run.data.metrics for run in self.runs() if run.info.status == "FINISHED"}
        return trials, runs

    def keeps(self, before: Results) -> bool:
        """Say whether everything that had finished still has, with the same figures."""
        now = self.results()
        metrics_kept = all(metrics.items() <= now[1].get(run_id, {}).items() for run_id, metrics in before[1].items())
        return before[0].items() <= now[0].items() and metrics_kept


@pytest.fixture
def case(finished_study: Path, tmp_path: Path) -> StoreUnderTest:
    return StoreUnderTest(copy_store(finished_study, tmp_path / "store"))


def kinds(report_: CheckReport) -> list[Kind]:
    return [found.kind for found in report_.findings]


def test_nothing_is_wrong_with_a_study_that_has_ended(case: StoreUnderTest) -> None:
    before = case.dump()
    for fix in (False, True):
        report_ = check_store(case.root, fix)
        assert (kinds(report_), report_.notes) == ([], ())
    assert case.dump() == before


def unfinished_trial(case: StoreUnderTest) -> None:
    number, run_id = case.best().number, case.run_of(case.best()).info.run_id
    case.sql("optuna", "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE number = ?", number)
    case.sql("mlflow", "UPDATE runs SET status = 'RUNNING', end_time = NULL WHERE run_uuid = ?", run_id)
    case.sql("mlflow", "UPDATE tags SET value = 'running' WHERE key = 'state' AND run_uuid = ?", run_id)


def unrecorded_result(case: StoreUnderTest) -> None:
    number = case.best().number
    case.sql(
        "optuna", "DELETE FROM trial_values WHERE trial_id IN (SELECT trial_id FROM trials WHERE number = ?)", number
    )
    case.sql("optuna", "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE number = ?", number)


def open_run_of_a_complete_trial(case: StoreUnderTest) -> None:
    case.client.update_run(case.run_of(case.best()).info.run_id, status="RUNNING")


def second_current_run(case: StoreUnderTest) -> None:
    run = case.run_of(case.best())
    twin = case.client.create_run(case.experiment, tags={**run.data.tags, "attempt": "0"}).info.run_id
    case.client.log_metric(twin, "objective", 0.1)
    case.client.delete_tag(twin, "model_sha256")
    case.client.set_tag(twin, "state", "interrupted")
    case.client.set_terminated(twin, "KILLED")


def run_of_no_trial(case: StoreUnderTest) -> None:
    tags = {"mlflow.parentRunId": case.study_run().info.run_id, "kind": "trial", "trial": "7", "study": STUDY}
    case.client.create_run(case.experiment, tags=tags)


def run_of_no_study(case: StoreUnderTest) -> None:
    case.client.create_run(case.experiment, tags={"mlflow.parentRunId": GONE, "kind": "trial", "trial": "0"})


def abandoned_study(case: StoreUnderTest) -> None:
    case.client.update_run(case.study_run().info.run_id, status="RUNNING")
    holder = {"pid": 1, "started": 0.0}
    (case.root / "locks" / f"{STUDY}.json").write_text(json.dumps(holder))


def lost_run(case: StoreUnderTest) -> None:
    value = json.dumps(GONE)
    other = next(trial for trial in case.trial_storage() if trial.number != case.best().number)
    case.client.set_tag(other.user_attrs["run_id"], "orphan", "true")
    case.sql(
        "optuna",
        "UPDATE trial_user_attributes SET value_json = ? WHERE value_json = ?",
        value,
        f'"{other.user_attrs["run_id"]}"',
    )


def forgotten_best(case: StoreUnderTest) -> None:
    run_id = case.study_run().info.run_id
    for table in ("metrics", "latest_metrics"):
        case.sql("mlflow", f"DELETE FROM {table} WHERE key = 'best_objective' AND run_uuid = ?", run_id)


def altered_model(case: StoreUnderTest) -> None:
    other = next(trial for trial in case.trial_storage() if trial.state is TrialState.COMPLETE and trial != case.best())
    with (case.model_folder(case.run_of(other)) / "data" / "model.keras").open("ab") as file:
        file.write(b"altered")


def missing_evidence(case: StoreUnderTest) -> None:
    folder = local_path(case.run_of(case.best()).info.artifact_uri)
    assert folder is not None
    (folder / "confusion_matrix.json").unlink()


def altered_evidence(case: StoreUnderTest) -> None:
    folder = local_path(case.run_of(case.best()).info.artifact_uri)
    assert folder is not None
    table = json.loads((folder / "confusion_matrix.json").read_text())
    table["counts"][0][0] += 1
    (folder / "confusion_matrix.json").write_text(json.dumps(table, indent=2))


def pending_model(case: StoreUnderTest) -> None:
    case.client.create_logged_model(case.experiment, name="model", source_run_id=case.run_of(case.best()).info.run_id)


def abandoned_reproduction(case: StoreUnderTest) -> None:
    parent = case.client.create_run(case.experiment, tags={"kind": "baseline reproduction", "lock": "reproduction-1"})
    case.client.create_run(case.experiment, tags={"kind": "baseline", "mlflow.parentRunId": parent.info.run_id})
    with claim(case.root, "reproduction-1"):
        pass


def dangling_alias(case: StoreUnderTest) -> None:
    case.sql("mlflow", "INSERT INTO registered_model_aliases (name, alias, version) VALUES (?, 'old', 99)", NAME)


def missing_model_of_the_challenger(case: StoreUnderTest) -> None:
    shutil.rmtree(case.model_folder(case.run_of(case.best())))


def deleted_run_of_the_challenger(case: StoreUnderTest) -> None:
    case.client.delete_run(case.run_of(case.best()).info.run_id)


def lost_run_of_the_challenger(case: StoreUnderTest) -> None:
    case.sql("mlflow", "UPDATE model_versions SET run_id = ?", GONE)


def previous_champion_left_behind(case: StoreUnderTest) -> None:
    version = case.client.get_model_version_by_alias(NAME, CHALLENGER)
    made = case.client.create_model_version(NAME, str(version.source), run_id=version.run_id, tags=version.tags)
    case.client.set_model_version_tag(NAME, made.version, "champions_before", "1")
    case.client.set_registered_model_alias(NAME, CHAMPION, made.version)


def run_without_its_tags(case: StoreUnderTest) -> None:
    for tag in ("kind", "trial", "attempt", "mlflow.parentRunId", "study"):
        case.client.delete_tag(case.run_of(case.best()).info.run_id, tag)


def run_without_the_tags_of_its_model(case: StoreUnderTest) -> None:
    other = next(trial for trial in case.trial_storage() if trial.state is TrialState.COMPLETE and trial != case.best())
    for tag in ("model_uri", "model_sha256"):
        case.client.delete_tag(case.run_of(other).info.run_id, tag)


def study_run_without_its_tags(case: StoreUnderTest) -> None:
    run_id = case.study_run().info.run_id
    for tag in ("kind", "study"):
        case.client.delete_tag(run_id, tag)


def version_without_its_tags(case: StoreUnderTest) -> None:
    for tag in ("dataset", "model_sha256"):
        case.client.delete_model_version_tag(NAME, "1", tag)


def useless_checkpoints(case: StoreUnderTest) -> None:
    folder = case.root / "checkpoints" / STUDY
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("trial-000.checkpoint", "trial-001.checkpoint.999999999", "trial-002-repeat-1.checkpoint"):
        (folder / name).write_bytes(b"half a checkpoint")


DAMAGES: list[tuple[Callable[[StoreUnderTest], None], set[Kind]]] = [
    (unfinished_trial, {Kind.ZOMBIE_TRIAL}),
    (unrecorded_result, {Kind.UNRECORDED_RESULT}),
    (open_run_of_a_complete_trial, {Kind.STATUS_MISMATCH}),
    (second_current_run, {Kind.DUPLICATE_CURRENT_RUN}),
    (run_of_no_trial, {Kind.ORPHAN}),
    (run_of_no_study, {Kind.ORPHAN}),
    (abandoned_study, {Kind.ZOMBIE_STUDY}),
    (lost_run, {Kind.LOST_RUN}),
    (forgotten_best, {Kind.STALE_BEST}),
    (altered_model, {Kind.FILES}),
    (missing_evidence, {Kind.FILES}),
    (altered_evidence, {Kind.FILES}),
    (pending_model, {Kind.PENDING_MODEL}),
    (abandoned_reproduction, {Kind.ZOMBIE_RUN}),
    (dangling_alias, {Kind.ALIAS}),
    (missing_model_of_the_challenger, {Kind.FILES, Kind.VERSION}),
    (deleted_run_of_the_challenger, {Kind.DELETED_RUN}),
    (lost_run_of_the_challenger, {Kind.VERSION}),
    (previous_champion_left_behind, {Kind.PREVIOUS_CHAMPION}),
    (run_without_its_tags, {Kind.STATUS_MISMATCH}),
    (run_without_the_tags_of_its_model, {Kind.FILES}),
    (study_run_without_its_tags, {Kind.STATUS_MISMATCH}),
    (version_without_its_tags, {Kind.VERSION}),
    (useless_checkpoints, {Kind.CHECKPOINT}),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_damage_is_found_and_repaired_for_good(
    damage: Callable[[StoreUnderTest], None], expected: set[Kind], case: StoreUnderTest
) -> None:
    damage(case)
    damaged, before = case.dump(), case.results()

    assert set(kinds(check_store(case.root))) == expected
    assert case.dump() == damaged

    repaired = check_store(case.root, fix=True)
    assert set(kinds(repaired)) == expected
    assert repaired.remaining == 0
    assert case.keeps(before)

    after = case.dump()
    assert kinds(check_store(case.root, fix=True)) == []
    assert case.dump() == after


def test_a_deleted_experiment_is_found_and_restored(case: StoreUnderTest) -> None:
    before = case.results()
    case.client.delete_experiment(case.experiment)

    assert Kind.DELETED_EXPERIMENT in kinds(check_store(case.root))
    assert kinds(check_store(case.root, fix=True)) == [Kind.DELETED_EXPERIMENT]

    assert case.results() == before
    assert kinds(check_store(case.root)) == []


def test_a_deleted_experiment_without_a_study_is_found_too(case: StoreUnderTest) -> None:
    for file in case.root.glob("optuna.db*"):
        file.unlink()
    case.client.delete_experiment(case.experiment)

    assert Kind.DELETED_EXPERIMENT in kinds(check_store(case.root, fix=True))
    assert case.client.get_experiment(case.experiment).lifecycle_stage == "active"


def test_what_a_user_has_put_into_the_bin_stays_there(case: StoreUnderTest) -> None:
    other = next(trial for trial in case.trial_storage() if trial.number != case.best().number)
    run_id = other.user_attrs["run_id"]
    case.client.delete_run(run_id)

    repaired = check_store(case.root, fix=True)

    assert kinds(repaired) == []
    assert "1 runs are deleted in MLflow: left as they are." in repaired.notes
    assert case.client.get_run(run_id).info.lifecycle_stage == "deleted"


def test_a_study_that_a_user_has_put_into_the_bin_stays_there(case: StoreUnderTest) -> None:
    run_id = case.study_run().info.run_id
    case.client.delete_run(run_id)

    repaired = check_store(case.root, fix=True)

    assert kinds(repaired) == []
    assert f"Study {STUDY} is deleted in MLflow: left as it is." in repaired.notes
    assert case.client.get_run(run_id).info.lifecycle_stage == "deleted"


def test_a_result_missing_from_the_trial_storage_is_adopted(case: StoreUnderTest) -> None:
    best = case.best()
    unrecorded_result(case)

    check_store(case.root, fix=True)

    assert (case.best().number, case.best().value, case.best().params) == (best.number, best.value, best.params)


def test_files_that_come_back_are_no_damage_any_more(case: StoreUnderTest) -> None:
    file = case.model_folder(case.run_of(case.best())) / "data" / "model.keras"
    kept = file.rename(file.with_name("kept"))
    check_store(case.root, fix=True)
    assert case.run_of(case.best()).data.tags["damaged_files"] == "model.keras missing"

    kept.rename(file)

    assert set(kinds(check_store(case.root, fix=True))) == {Kind.FILES, Kind.VERSION}
    assert "damaged_files" not in case.run_of(case.best()).data.tags
    assert kinds(check_store(case.root)) == []


def test_a_model_that_was_taken_away_on_purpose_is_not_missed(case: StoreUnderTest) -> None:
    other = next(trial for trial in case.trial_storage() if trial.state is TrialState.COMPLETE and trial != case.best())
    shutil.rmtree(case.model_folder(case.run_of(other)))
    case.client.set_tag(case.run_of(other).info.run_id, "model_removed", "to keep the best 1")

    assert kinds(check_store(case.root)) == []


def test_a_damaged_champion_is_left_for_a_person_to_decide_on(case: StoreUnderTest) -> None:
    case.client.set_registered_model_alias(NAME, CHAMPION, "1")
    missing_model_of_the_challenger(case)

    report_ = check_store(case.root, fix=True)

    (left,) = (found for found in report_.findings if found.done is None)
    assert left.kind is Kind.VERSION
    assert "experiments.promote" in left.remedy
    assert case.client.get_registered_model(NAME).aliases[CHAMPION] == 1
    assert check_store(case.root, fix=True).remaining == 1


def test_a_champion_whose_alias_was_deleted_is_missed(case: StoreUnderTest) -> None:
    case.client.set_model_version_tag(NAME, "1", LINE, "none")

    (missed,) = check_store(case.root, fix=True).findings

    assert (missed.kind, missed.where, missed.done) == (Kind.ALIAS, f"{NAME}@{CHAMPION}", None)
    assert "champion before: version 1" in missed.what


def test_a_champion_without_its_version_yields_to_the_previous(case: StoreUnderTest) -> None:
    case.client.set_registered_model_alias(NAME, PREVIOUS_CHAMPION, "1")
    case.sql("mlflow", "INSERT INTO registered_model_aliases (name, alias, version) VALUES (?, 'champion', 99)", NAME)

    assert check_store(case.root, fix=True).remaining == 0

    assert case.client.get_registered_model(NAME).aliases[CHAMPION] == 1
    assert kinds(check_store(case.root)) == []


def test_a_study_that_is_being_run_is_named_and_left_alone(case: StoreUnderTest) -> None:
    unfinished_trial(case)
    pending_model(case)
    abandoned_study(case)
    before = case.dump()

    with claim(case.root, STUDY):
        report_ = check_store(case.root, fix=True)

    assert kinds(report_) == []
    assert any(note.startswith(f"Study {STUDY} is being run by process {os.getpid()}") for note in report_.notes)
    assert case.dump() == before


def test_a_reproduction_that_is_at_work_is_left_alone(case: StoreUnderTest) -> None:
    abandoned_reproduction(case)

    with claim(case.root, "reproduction-1"):
        report_ = check_store(case.root, fix=True)

    assert kinds(report_) == []
    assert any("The baseline is being reproduced by process" in note for note in report_.notes)


def test_a_registry_that_is_being_changed_is_left_alone(case: StoreUnderTest) -> None:
    dangling_alias(case)

    with promotion_lock(case.root):
        report_ = check_store(case.root, fix=True)

    assert kinds(report_) == []
    assert any("A promotion is at work" in note for note in report_.notes)


@pytest.mark.parametrize("is_copy", [False, True], ids=["moved", "copied"])
def test_a_store_in_another_folder_gets_its_addresses_repaired(
    is_copy: bool, case: StoreUnderTest, tmp_path: Path
) -> None:
    before, there = case.results(), tmp_path / "another folder_"
    shutil.copytree(case.root, there)
    if not is_copy:
        shutil.rmtree(case.root)
    moved = StoreUnderTest(there)
    damaged = moved.dump()

    report_ = check_store(there)
    assert kinds(report_) == [Kind.MOVED]
    assert case.root.as_uri() in report_.findings[0].what
    assert moved.dump() == damaged
    assert check_store(there, fix=True).remaining == 0

    assert str(case.root) + "/" not in "".join(moved.dump())
    assert moved.keeps(before)
    assert moved.model_folder(moved.run_of(moved.best())).is_relative_to(there)
    assert kinds(check_store(there)) == []
    (copy,) = (there / "backups").iterdir()
    with closing(sqlite3.connect(copy)) as connection:
        kept = list(connection.iterdump())
    assert kept == damaged[: len(kept)]
    if is_copy:
        assert kinds(check_store(case.root)) == []


def test_artifacts_logged_to_the_old_folder_after_a_move_come_too(case: StoreUnderTest, tmp_path: Path) -> None:
    there = tmp_path / "there"
    case.root.rename(there)
    moved = StoreUnderTest(there)
    run_id = moved.client.create_run(moved.experiment).info.run_id
    moved.client.log_text(run_id, "evidence", "note.txt")
    assert case.root.exists()

    check_store(there, fix=True)

    assert moved.client.get_run(run_id).info.artifact_uri.startswith(there.as_uri())
    assert [note.read_text() for root in (there, case.root) for note in root.rglob("note.txt")] == ["evidence"] * 2


def test_artifacts_sent_elsewhere_on_purpose_stay_there(case: StoreUnderTest, tmp_path: Path) -> None:
    elsewhere = tmp_path / "archive" / "artifacts" / "mine"
    elsewhere.mkdir(parents=True)
    for name, place in {"mine": elsewhere.as_uri(), "bucket": "s3://bucket/artifacts/bucket"}.items():
        case.client.create_experiment(name, artifact_location=place)

    assert kinds(check_store(case.root)) == []


@pytest.mark.parametrize("name", ["mlflow", "optuna"])
def test_a_damaged_database_is_named_and_nothing_else_is_touched(name: str, case: StoreUnderTest) -> None:
    unfinished_trial(case)
    path = case.root / f"{name}.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    for page in range(6, len(content) // 4096 - 1, 3):
        content[page * 4096 : page * 4096 + 16] = b"\xff" * 16
    path.write_bytes(content)

    report_ = check_store(case.root, fix=True)

    assert kinds(report_) == [Kind.DATABASE]
    assert report_.findings[0].where == path.name
    assert report_.remaining == 1
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["mlflow", "optuna"])
def test_a_file_that_is_no_database_is_refused(name: str, case: StoreUnderTest) -> None:
    (case.root / f"{name}.db").write_text("This is no database, and was never one. " * 200)
    with pytest.raises(StoreError, match=rf"{name}\.db cannot be read"):
        check_store(case.root)


@pytest.mark.parametrize("name", ["mlflow", "optuna"])
def test_a_database_that_is_gone_is_named(name: str, case: StoreUnderTest) -> None:
    for file in case.root.glob(f"{name}.db*"):
        file.unlink()

    report_ = check_store(case.root, fix=True)

    assert kinds(report_) == [Kind.DATABASE]
    assert report_.remaining == 1
    assert not (case.root / f"{name}.db").exists()


def test_a_folder_that_no_file_system_can_have_has_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        check_store(tmp_path / ("x" * 300))


def test_where_there_is_no_store_nothing_is_made(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "store"):
        with pytest.raises(StoreError, match="--store"):
            check_store(root)
    assert list(tmp_path.iterdir()) == []


def test_over_a_tracking_server_it_says_what_it_cannot_see(
    case: StoreUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case.root / "mlflow.db").rename(case.root / "server.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{case.root}/server.db")
    served = MlflowClient(f"sqlite:///{case.root}/server.db")
    stranger = served.create_run(case.experiment, tags={"kind": "baseline reproduction"}).info.run_id
    nested = {"kind": "trial", "trial": "0", "mlflow.parentRunId": GONE}
    other = served.create_run(case.experiment, tags=nested).info.run_id
    case.sql("optuna", "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE number = 1")

    report_ = check_store(case.root, fix=True)

    assert report_.remaining == 0
    assert kinds(report_) == [Kind.UNRECORDED_RESULT]
    assert {served.get_run(run_id).info.status for run_id in (stranger, other)} == {"RUNNING"}
    assert any("are not looked at" in note for note in report_.notes)
    assert any(stranger in note for note in report_.notes)


def test_a_study_killed_before_it_had_a_run_is_no_damage(tmp_path: Path) -> None:
    optuna.create_study(study_name=STUDY, storage=f"sqlite:///{tmp_path}/optuna.db")

    seen = check_store(tmp_path)

    assert seen.findings == ()
    assert any("run_study goes on" in note for note in seen.notes)


def test_a_run_that_names_another_trial_is_led_back_to_its_own(case: StoreUnderTest) -> None:
    trial = case.best()
    case.client.set_tag(case.run_of(trial).info.run_id, "trial", "9")

    repaired = check_store(case.root, fix=True)

    assert [found.kind for found in repaired.findings] == [Kind.STATUS_MISMATCH]
    assert case.run_of(trial).data.tags["trial"] == str(trial.number)
    assert check_store(case.root).findings == ()


def test_altered_numbers_leave_the_rest_to_be_checked(case: StoreUnderTest) -> None:
    trial = case.best()
    case.client.set_tag(case.run_of(trial).info.run_id, "attempt", "9" * 4_500)
    with closing(sqlite3.connect(case.root / "optuna.db")) as database, database:
        database.execute("UPDATE trial_user_attributes SET value_json = '\"x\"' WHERE key = 'attempt'")

    assert check_store(case.root).findings == ()


def test_a_study_whose_facts_are_altered_is_named(case: StoreUnderTest) -> None:
    with closing(sqlite3.connect(case.root / "optuna.db")) as database, database:
        database.execute("UPDATE study_user_attributes SET value_json = '5' WHERE key = 'run_id'")

    findings = list(check_store(case.root).findings)

    assert (Kind.DATABASE, STUDY) in [(finding.kind, finding.where) for finding in findings]


def test_a_moved_store_brings_nothing_along_from_outside(case: StoreUnderTest, tmp_path: Path) -> None:
    outside = case.root.parent / "outside"
    outside.mkdir()
    climbing = f"{(case.root / 'artifacts').as_uri()}/../../outside"
    run_id = case.run_of(case.best()).info.run_id
    with closing(sqlite3.connect(case.root / "mlflow.db")) as database, database:
        database.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (climbing, run_id))
    copy = tmp_path / "elsewhere" / "store"
    shutil.copytree(case.root, copy)

    check_store(copy, fix=True)

    assert not (copy.parent / "outside").exists()
