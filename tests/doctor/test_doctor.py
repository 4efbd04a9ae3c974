"""The promises of the doctor: every kind of damage is found, mended without losing a result, and stays mended."""

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

from fashion_study.config import StudyConfig
from fashion_study.doctor.check import CheckReport, check_store
from fashion_study.errors import StoreError
from fashion_study.finding import Kind
from fashion_study.store.locks import claim
from fashion_study.store.relocation import local_path, moves, rebase
from fashion_study.store.store import open_store
from fashion_study.study.run import run_study
from fashion_study.tracking.aliases import promotion_lock
from fashion_study.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION, registered_name
from tests.support.optuna_client import trials_of

STUDY = "digits-smoke"
NAME = registered_name("digits")
GONE = "0" * 32
Results = tuple[dict[int, Any], dict[str, dict[str, float]]]


def config(store: Path, trials: int = 3) -> StudyConfig:
    return StudyConfig(
        space="smoke", dataset="digits", trials=trials, workers=1, store=store, precision="float32", finalists=0
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a small study to its end."""
    root = tmp_path_factory.mktemp("sound") / "store"
    run_study(config(root))
    return root


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
def ward(sound: Path, tmp_path: Path) -> StoreUnderTest:
    root = tmp_path / "store"
    shutil.copytree(sound, root)
    store = open_store(root)
    for move in moves(store):
        rebase(store, move)
    shutil.rmtree(root / "backups")
    return StoreUnderTest(root)


def kinds(report_: CheckReport) -> list[Kind]:
    return [result.finding.kind for result in report_.results]


def test_nothing_is_wrong_with_a_study_that_has_ended(ward: StoreUnderTest) -> None:
    before = ward.dump()
    for fix in (False, True):
        report_ = check_store(ward.root, fix)
        assert (kinds(report_), report_.notes) == ([], ())
    assert ward.dump() == before


def unfinished_trial(ward: StoreUnderTest) -> None:
    number, run_id = ward.best().number, ward.run_of(ward.best()).info.run_id
    ward.sql("optuna", "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE number = ?", number)
    ward.sql("mlflow", "UPDATE runs SET status = 'RUNNING', end_time = NULL WHERE run_uuid = ?", run_id)
    ward.sql("mlflow", "UPDATE tags SET value = 'running' WHERE key = 'state' AND run_uuid = ?", run_id)


def untold_result(ward: StoreUnderTest) -> None:
    number = ward.best().number
    ward.sql(
        "optuna", "DELETE FROM trial_values WHERE trial_id IN (SELECT trial_id FROM trials WHERE number = ?)", number
    )
    ward.sql("optuna", "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE number = ?", number)


def open_run_of_a_complete_trial(ward: StoreUnderTest) -> None:
    ward.client.update_run(ward.run_of(ward.best()).info.run_id, status="RUNNING")


def second_current_run(ward: StoreUnderTest) -> None:
    run = ward.run_of(ward.best())
    twin = ward.client.create_run(ward.experiment, tags={**run.data.tags, "attempt": "0"}).info.run_id
    ward.client.log_metric(twin, "objective", 0.1)
    ward.client.delete_tag(twin, "model_sha256")
    ward.client.set_tag(twin, "state", "interrupted")
    ward.client.set_terminated(twin, "KILLED")


def run_of_no_trial(ward: StoreUnderTest) -> None:
    tags = {"mlflow.parentRunId": ward.study_run().info.run_id, "kind": "trial", "trial": "7", "study": STUDY}
    ward.client.create_run(ward.experiment, tags=tags)


def run_of_no_study(ward: StoreUnderTest) -> None:
    ward.client.create_run(ward.experiment, tags={"mlflow.parentRunId": GONE, "kind": "trial", "trial": "0"})


def abandoned_study(ward: StoreUnderTest) -> None:
    ward.client.update_run(ward.study_run().info.run_id, status="RUNNING")
    holder = {"pid": 1, "started": 0.0}
    (ward.root / "locks" / f"{STUDY}.json").write_text(json.dumps(holder))


def lost_run(ward: StoreUnderTest) -> None:
    value = json.dumps(GONE)
    other = next(trial for trial in ward.trial_storage() if trial.number != ward.best().number)
    ward.client.set_tag(other.user_attrs["run_id"], "orphan", "true")
    ward.sql(
        "optuna",
        "UPDATE trial_user_attributes SET value_json = ? WHERE value_json = ?",
        value,
        f'"{other.user_attrs["run_id"]}"',
    )


def forgotten_best(ward: StoreUnderTest) -> None:
    run_id = ward.study_run().info.run_id
    for table in ("metrics", "latest_metrics"):
        ward.sql("mlflow", f"DELETE FROM {table} WHERE key = 'best_objective' AND run_uuid = ?", run_id)


def altered_model(ward: StoreUnderTest) -> None:
    other = next(trial for trial in ward.trial_storage() if trial.state is TrialState.COMPLETE and trial != ward.best())
    with (ward.model_folder(ward.run_of(other)) / "data" / "model.keras").open("ab") as file:
        file.write(b"altered")


def missing_evidence(ward: StoreUnderTest) -> None:
    folder = local_path(ward.run_of(ward.best()).info.artifact_uri)
    assert folder is not None
    (folder / "confusion_matrix.json").unlink()


def altered_evidence(ward: StoreUnderTest) -> None:
    folder = local_path(ward.run_of(ward.best()).info.artifact_uri)
    assert folder is not None
    table = json.loads((folder / "confusion_matrix.json").read_text())
    table["counts"][0][0] += 1
    (folder / "confusion_matrix.json").write_text(json.dumps(table, indent=2))


def half_written_model(ward: StoreUnderTest) -> None:
    ward.client.create_logged_model(ward.experiment, name="model", source_run_id=ward.run_of(ward.best()).info.run_id)


def abandoned_reproduction(ward: StoreUnderTest) -> None:
    parent = ward.client.create_run(ward.experiment, tags={"kind": "baseline reproduction", "lock": "reproduction-1"})
    ward.client.create_run(ward.experiment, tags={"kind": "baseline", "mlflow.parentRunId": parent.info.run_id})
    with claim(ward.root, "reproduction-1"):
        pass


def dangling_alias(ward: StoreUnderTest) -> None:
    ward.sql("mlflow", "INSERT INTO registered_model_aliases (name, alias, version) VALUES (?, 'old', 99)", NAME)


def missing_model_of_the_challenger(ward: StoreUnderTest) -> None:
    shutil.rmtree(ward.model_folder(ward.run_of(ward.best())))


def deleted_run_of_the_challenger(ward: StoreUnderTest) -> None:
    ward.client.delete_run(ward.run_of(ward.best()).info.run_id)


def lost_run_of_the_challenger(ward: StoreUnderTest) -> None:
    ward.sql("mlflow", "UPDATE model_versions SET run_id = ?", GONE)


def previous_champion_left_behind(ward: StoreUnderTest) -> None:
    version = ward.client.get_model_version_by_alias(NAME, CHALLENGER)
    made = ward.client.create_model_version(NAME, str(version.source), run_id=version.run_id, tags=version.tags)
    ward.client.set_model_version_tag(NAME, made.version, "champions_before", "1")
    ward.client.set_registered_model_alias(NAME, CHAMPION, made.version)


DAMAGES: list[tuple[Callable[[StoreUnderTest], None], set[Kind]]] = [
    (unfinished_trial, {Kind.ZOMBIE_TRIAL}),
    (untold_result, {Kind.UNRECORDED_RESULT}),
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
    (half_written_model, {Kind.PENDING_MODEL}),
    (abandoned_reproduction, {Kind.ZOMBIE_RUN}),
    (dangling_alias, {Kind.ALIAS}),
    (missing_model_of_the_challenger, {Kind.FILES, Kind.VERSION}),
    (deleted_run_of_the_challenger, {Kind.DELETED_RUN}),
    (lost_run_of_the_challenger, {Kind.VERSION}),
    (previous_champion_left_behind, {Kind.PREVIOUS_CHAMPION}),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_damage_is_found_and_mended_for_good(
    damage: Callable[[StoreUnderTest], None], expected: set[Kind], ward: StoreUnderTest
) -> None:
    damage(ward)
    damaged, before = ward.dump(), ward.results()

    assert set(kinds(check_store(ward.root))) == expected
    assert ward.dump() == damaged

    mended = check_store(ward.root, fix=True)
    assert set(kinds(mended)) == expected
    assert mended.remaining == 0
    assert ward.keeps(before)

    after = ward.dump()
    assert kinds(check_store(ward.root, fix=True)) == []
    assert ward.dump() == after


def test_what_a_user_has_put_into_the_bin_stays_there(ward: StoreUnderTest) -> None:
    other = next(trial for trial in ward.trial_storage() if trial.number != ward.best().number)
    run_id = other.user_attrs["run_id"]
    ward.client.delete_run(run_id)

    mended = check_store(ward.root, fix=True)

    assert kinds(mended) == []
    assert "1 runs lie in MLflow's bin: left there." in mended.notes
    assert ward.client.get_run(run_id).info.lifecycle_stage == "deleted"


def test_a_study_that_a_user_has_put_into_the_bin_stays_there(ward: StoreUnderTest) -> None:
    run_id = ward.study_run().info.run_id
    ward.client.delete_run(run_id)

    mended = check_store(ward.root, fix=True)

    assert kinds(mended) == []
    assert f"Study {STUDY} is in MLflow's bin: left there." in mended.notes
    assert ward.client.get_run(run_id).info.lifecycle_stage == "deleted"


def test_a_result_that_the_ledger_did_not_hear_of_is_taken_over_as_it_was(ward: StoreUnderTest) -> None:
    best = ward.best()
    untold_result(ward)

    check_store(ward.root, fix=True)

    assert (ward.best().number, ward.best().value, ward.best().params) == (best.number, best.value, best.params)


def test_files_that_come_back_are_no_damage_any_more(ward: StoreUnderTest) -> None:
    file = ward.model_folder(ward.run_of(ward.best())) / "data" / "model.keras"
    kept = file.rename(file.with_name("kept"))
    check_store(ward.root, fix=True)
    assert ward.run_of(ward.best()).data.tags["damaged_files"] == "model.keras missing"

    kept.rename(file)

    assert set(kinds(check_store(ward.root, fix=True))) == {Kind.FILES, Kind.VERSION}
    assert "damaged_files" not in ward.run_of(ward.best()).data.tags
    assert kinds(check_store(ward.root)) == []


def test_a_model_that_was_taken_away_on_purpose_is_not_missed(ward: StoreUnderTest) -> None:
    other = next(trial for trial in ward.trial_storage() if trial.state is TrialState.COMPLETE and trial != ward.best())
    shutil.rmtree(ward.model_folder(ward.run_of(other)))
    ward.client.set_tag(ward.run_of(other).info.run_id, "model_removed", "to keep the best 1")

    assert kinds(check_store(ward.root)) == []


def test_a_damaged_champion_is_left_for_a_person_to_decide_on(ward: StoreUnderTest) -> None:
    ward.client.set_registered_model_alias(NAME, CHAMPION, "1")
    missing_model_of_the_challenger(ward)

    report_ = check_store(ward.root, fix=True)

    (left,) = (result.finding for result in report_.results if result.done is None)
    assert left.kind is Kind.VERSION
    assert "experiments.promote" in left.remedy
    assert ward.client.get_registered_model(NAME).aliases[CHAMPION] == 1
    assert check_store(ward.root, fix=True).remaining == 1


def test_a_champion_without_its_version_gives_way_to_the_one_before(ward: StoreUnderTest) -> None:
    ward.client.set_registered_model_alias(NAME, PREVIOUS_CHAMPION, "1")
    ward.sql("mlflow", "INSERT INTO registered_model_aliases (name, alias, version) VALUES (?, 'champion', 99)", NAME)

    assert check_store(ward.root, fix=True).remaining == 0

    assert ward.client.get_registered_model(NAME).aliases[CHAMPION] == 1
    assert kinds(check_store(ward.root)) == []


def test_a_study_that_is_being_run_is_named_and_left_alone(ward: StoreUnderTest) -> None:
    unfinished_trial(ward)
    half_written_model(ward)
    abandoned_study(ward)
    before = ward.dump()

    with claim(ward.root, STUDY):
        report_ = check_store(ward.root, fix=True)

    assert kinds(report_) == []
    assert any(note.startswith(f"Study {STUDY} is being run by process {os.getpid()}") for note in report_.notes)
    assert ward.dump() == before


def test_a_reproduction_that_is_at_work_is_left_alone(ward: StoreUnderTest) -> None:
    abandoned_reproduction(ward)

    with claim(ward.root, "reproduction-1"):
        report_ = check_store(ward.root, fix=True)

    assert kinds(report_) == []
    assert any("The baseline is being reproduced by process" in note for note in report_.notes)


def test_a_registry_that_is_being_changed_is_left_alone(ward: StoreUnderTest) -> None:
    dangling_alias(ward)

    with promotion_lock(ward.root):
        report_ = check_store(ward.root, fix=True)

    assert kinds(report_) == []
    assert any("A promotion is at work" in note for note in report_.notes)


@pytest.mark.parametrize("is_copy", [False, True], ids=["moved", "copied"])
def test_a_store_in_another_folder_gets_its_addresses_mended(
    is_copy: bool, ward: StoreUnderTest, tmp_path: Path
) -> None:
    before, there = ward.results(), tmp_path / "another folder_"
    shutil.copytree(ward.root, there)
    if not is_copy:
        shutil.rmtree(ward.root)
    moved = StoreUnderTest(there)
    damaged = moved.dump()

    report_ = check_store(there)
    assert kinds(report_) == [Kind.MOVED]
    assert ward.root.as_uri() in report_.results[0].finding.what
    assert moved.dump() == damaged
    assert check_store(there, fix=True).remaining == 0

    assert str(ward.root) + "/" not in "".join(moved.dump())
    assert moved.keeps(before)
    assert moved.model_folder(moved.run_of(moved.best())).is_relative_to(there)
    assert kinds(check_store(there)) == []
    (copy,) = (there / "backups").iterdir()
    with closing(sqlite3.connect(copy)) as connection:
        kept = list(connection.iterdump())
    assert kept == damaged[: len(kept)]
    if is_copy:
        assert kinds(check_store(ward.root)) == []


def test_what_was_logged_into_the_old_folder_after_a_move_comes_along(ward: StoreUnderTest, tmp_path: Path) -> None:
    there = tmp_path / "there"
    ward.root.rename(there)
    moved = StoreUnderTest(there)
    run_id = moved.client.create_run(moved.experiment).info.run_id
    moved.client.log_text(run_id, "evidence", "note.txt")
    assert ward.root.exists()

    check_store(there, fix=True)

    assert moved.client.get_run(run_id).info.artifact_uri.startswith(there.as_uri())
    assert [note.read_text() for root in (there, ward.root) for note in root.rglob("note.txt")] == ["evidence"] * 2


def test_artifacts_that_were_sent_elsewhere_on_purpose_stay_there(ward: StoreUnderTest, tmp_path: Path) -> None:
    elsewhere = tmp_path / "archive" / "artifacts" / "mine"
    elsewhere.mkdir(parents=True)
    for name, place in {"mine": elsewhere.as_uri(), "bucket": "s3://bucket/artifacts/bucket"}.items():
        ward.client.create_experiment(name, artifact_location=place)

    assert kinds(check_store(ward.root)) == []


@pytest.mark.parametrize("name", ["mlflow", "optuna"])
def test_a_damaged_database_is_named_and_nothing_else_is_touched(name: str, ward: StoreUnderTest) -> None:
    unfinished_trial(ward)
    path = ward.root / f"{name}.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    for page in range(6, len(content) // 4096 - 1, 3):
        content[page * 4096 : page * 4096 + 16] = b"\xff" * 16
    path.write_bytes(content)

    report_ = check_store(ward.root, fix=True)

    assert kinds(report_) == [Kind.DATABASE]
    assert report_.results[0].finding.where == path.name
    assert report_.remaining == 1
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["mlflow", "optuna"])
def test_a_file_that_is_no_database_is_refused(name: str, ward: StoreUnderTest) -> None:
    (ward.root / f"{name}.db").write_text("This is no database, and was never one. " * 200)
    with pytest.raises(StoreError, match=rf"{name}\.db cannot be read"):
        check_store(ward.root)


@pytest.mark.parametrize("name", ["mlflow", "optuna"])
def test_a_database_that_is_gone_is_named(name: str, ward: StoreUnderTest) -> None:
    for file in ward.root.glob(f"{name}.db*"):
        file.unlink()

    report_ = check_store(ward.root, fix=True)

    assert kinds(report_) == [Kind.DATABASE]
    assert report_.remaining == 1
    assert not (ward.root / f"{name}.db").exists()


def test_a_folder_that_no_file_system_can_have_has_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        check_store(tmp_path / ("x" * 300))


def test_where_there_is_no_store_nothing_is_made(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "store"):
        with pytest.raises(StoreError, match="--store"):
            check_store(root)
    assert list(tmp_path.iterdir()) == []


def test_over_a_tracking_server_it_says_what_it_cannot_see(
    ward: StoreUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ward.root / "mlflow.db").rename(ward.root / "server.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{ward.root}/server.db")
    served = MlflowClient(f"sqlite:///{ward.root}/server.db")
    stranger = served.create_run(ward.experiment, tags={"kind": "baseline reproduction"}).info.run_id
    nested = {"kind": "trial", "trial": "0", "mlflow.parentRunId": GONE}
    other = served.create_run(ward.experiment, tags=nested).info.run_id
    ward.sql("optuna", "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE number = 1")

    report_ = check_store(ward.root, fix=True)

    assert report_.remaining == 0
    assert kinds(report_) == [Kind.UNRECORDED_RESULT]
    assert {served.get_run(run_id).info.status for run_id in (stranger, other)} == {"RUNNING"}
    assert any("are not looked at" in note for note in report_.notes)
    assert any(stranger in note for note in report_.notes)


def test_a_store_whose_study_was_killed_before_it_had_a_run_is_not_damaged(tmp_path: Path) -> None:
    optuna.create_study(study_name=STUDY, storage=f"sqlite:///{tmp_path}/optuna.db")

    seen = check_store(tmp_path)

    assert seen.results == ()
    assert any("run_study goes on" in note for note in seen.notes)


def test_a_run_that_names_another_trial_is_led_back_to_its_own(ward: StoreUnderTest) -> None:
    trial = ward.best()
    ward.client.set_tag(ward.run_of(trial).info.run_id, "trial", "9")

    mended = check_store(ward.root, fix=True)

    assert [result.finding.kind for result in mended.results] == [Kind.STATUS_MISMATCH]
    assert ward.run_of(trial).data.tags["trial"] == str(trial.number)
    assert check_store(ward.root).results == ()


def test_altered_numbers_of_a_run_and_of_a_trial_leave_the_rest_to_be_examined(ward: StoreUnderTest) -> None:
    trial = ward.best()
    ward.client.set_tag(ward.run_of(trial).info.run_id, "attempt", "9" * 4_500)
    with closing(sqlite3.connect(ward.root / "optuna.db")) as database, database:
        database.execute("UPDATE trial_user_attributes SET value_json = '\"x\"' WHERE key = 'attempt'")

    assert check_store(ward.root).results == ()


def test_a_study_whose_facts_are_altered_is_named(ward: StoreUnderTest) -> None:
    with closing(sqlite3.connect(ward.root / "optuna.db")) as database, database:
        database.execute("UPDATE study_user_attributes SET value_json = '5' WHERE key = 'run_id'")

    findings = [result.finding for result in check_store(ward.root).results]

    assert (Kind.DATABASE, STUDY) in [(finding.kind, finding.where) for finding in findings]


def test_a_moved_store_brings_nothing_along_from_outside(ward: StoreUnderTest, tmp_path: Path) -> None:
    outside = ward.root.parent / "outside"
    outside.mkdir()
    climbing = f"{(ward.root / 'artifacts').as_uri()}/../../outside"
    run_id = ward.run_of(ward.best()).info.run_id
    with closing(sqlite3.connect(ward.root / "mlflow.db")) as database, database:
        database.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (climbing, run_id))
    copy = tmp_path / "elsewhere" / "store"
    shutil.copytree(ward.root, copy)

    check_store(copy, fix=True)

    assert not (copy.parent / "outside").exists()
