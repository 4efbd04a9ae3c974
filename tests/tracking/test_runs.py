"""The promises of a study in MLflow, read back with MLflow's own client from a real store."""

import csv
import io
import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run

from fashion_study.data.catalog import load_dataset, locate
from fashion_study.store.store import Store
from fashion_study.store.trials import TrialRecord
from fashion_study.study.leaderboard import table
from fashion_study.testing.training import toy_report
from fashion_study.tracking import runs as runs_module
from fashion_study.tracking.attempt import run_name
from fashion_study.tracking.runs import StudyMetadata, StudyRuns
from fashion_study.trial import FailReason, Hyperparameters, Precision, TrialResult, TrialSpec, TrialState

PARAMS = Hyperparameters(epochs=3)
METADATA = StudyMetadata(
    name="toy",
    space_yaml="name: toy\n",
    attrs={"space": "smoke", "seed": 3, "limit_train": None},
    settings={"sampler": "tpe", "trials": 4, "timeout": None},
)
DATA = load_dataset(locate("digits"))


class Bench:
    """A tracker on a real store, and what is needed to read it back."""

    def __init__(self, store: Store) -> None:
        self.client: MlflowClient = store.client()
        self.experiment_id = store.experiment_id(self.client, "digits")

    def tracker(self, name: str, run_id: str | None = None) -> tuple[StudyRuns, str]:
        tracker = StudyRuns(self.client, self.experiment_id, run_id)
        metadata = StudyMetadata(name, METADATA.space_yaml, METADATA.attrs, METADATA.settings)
        return tracker, tracker.open_study(metadata, DATA)

    def run(self, run_id: str) -> Run:
        return self.client.get_run(run_id)

    def text(self, run_id: str, path: str) -> str:
        return Path(self.client.download_artifacts(run_id, path)).read_text()

    def artifacts(self, run_id: str, path: str = "") -> list[str]:
        return [entry.path for entry in self.client.list_artifacts(run_id, path)]


@pytest.fixture
def bench(store: Store, monkeypatch: pytest.MonkeyPatch) -> Bench:
    # A client's load_table looks for runs in the default store.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.tracking_uri)
    return Bench(store)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Give each test a study of its own in the one store."""
    return str(request.node.name)


def begun(tracker: StudyRuns, number: int = 0, attempt: int = 1) -> TrialSpec:
    run_id = tracker.open_trial(number, attempt, PARAMS.model_dump(), {"seed": "17", "precision": "bfloat16"})
    return TrialSpec(number, attempt, PARAMS, 17, run_id, Precision.BFLOAT16)


def inputs(run: Run) -> dict[str, tuple[str, str, int]]:
    """Read which data sets a run names: context to name, digest and number of images."""
    assert run.inputs is not None
    return {
        entry.tags[0].value: (
            entry.dataset.name,
            entry.dataset.digest,
            json.loads(entry.dataset.profile or "{}")["images"],
        )
        for entry in run.inputs.dataset_inputs
    }


def test_a_study_s_run_shows_what_was_asked(bench: Bench, name: str) -> None:
    _, run_id = bench.tracker(name)

    run = bench.run(run_id)

    assert (run.info.run_name, run.info.status) == (name, "RUNNING")
    assert run.data.params == {"space": "smoke", "seed": "3", "limit_train": "None"}
    shown = {key: run.data.tags[key] for key in ("kind", "study", "sampler", "trials")}
    assert shown == {"kind": "study", "study": name, "sampler": "tpe", "trials": "4"}
    assert {"host", "code_version", "mlflow.user", "mlflow.source.name"} <= run.data.tags.keys()
    assert bench.text(run_id, "space.yaml") == METADATA.space_yaml
    assert inputs(run) == {
        "training": ("digits-training", DATA.split_digest[:36], 1079),
        "validation": ("digits-validation", DATA.split_digest[:36], 359),
    }


def test_a_resumed_study_keeps_its_run_and_notes_each_start(bench: Bench, name: str) -> None:
    tracker, run_id = bench.tracker(name)
    tracker.close_study("KILLED", {"trials_counted": "2"})
    assert bench.run(run_id).info.status == "KILLED"

    again = StudyRuns(bench.client, bench.experiment_id, run_id)
    metadata = StudyMetadata(
        name, METADATA.space_yaml, METADATA.attrs, {"sampler": "qmc", "trials": 9, "timeout": None}
    )
    assert again.open_study(metadata, DATA) == run_id

    run = bench.run(run_id)
    assert run.info.status == "RUNNING"
    assert (run.data.tags["sampler"], run.data.tags["trials"]) == ("qmc", "9")
    starts = bench.client.load_table(bench.experiment_id, "invocations.json", run_ids=[run_id])
    assert list(starts["sampler"]) == ["tpe", "qmc"]
    assert list(starts["trials"]) == [4, 9]


def test_a_trial_s_run_is_nested_and_has_all_parameters(bench: Bench, name: str) -> None:
    tracker, study_run = bench.tracker(name)
    spec = begun(tracker, number=7)

    run = bench.run(spec.run_id)

    assert (run.info.run_name, run.info.status) == ("007", "RUNNING")
    assert run.data.params == {key: str(value) for key, value in PARAMS.model_dump().items()}
    expected = {
        "mlflow.parentRunId": study_run,
        "kind": "trial",
        "study": name,
        "trial": "7",
        "attempt": "1",
        "state": "running",
        "seed": "17",
        "precision": "bfloat16",
    }
    assert {key: run.data.tags[key] for key in expected} == expected
    assert {"host", "code_version"} <= run.data.tags.keys()
    assert inputs(run).keys() == {"training", "validation"}


def test_every_epoch_is_a_point_of_the_curves(bench: Bench, name: str) -> None:
    tracker, _ = bench.tracker(name)
    spec = begun(tracker)
    reports = [toy_report(spec, epoch) for epoch in (1, 2, 3)]
    for report in reports:
        tracker.log_epochs(spec.run_id, report)

    def curve(metric: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in bench.client.get_metric_history(spec.run_id, metric)]

    assert curve("val_accuracy") == [(report.epoch, report.val_accuracy) for report in reports]
    assert curve("val_loss") == [(report.epoch, report.val_loss) for report in reports]
    assert curve("train_accuracy") == [(report.epoch, report.train_accuracy) for report in reports]
    assert curve("train_loss") == [(report.epoch, report.train_loss) for report in reports]
    assert curve("epoch_seconds") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert curve("images_per_second") == [(1, 1000.0), (2, 1000.0), (3, 1000.0)]


def test_a_complete_trial_is_finished_with_its_final_metrics(bench: Bench, name: str) -> None:
    tracker, _ = bench.tracker(name)
    spec = begun(tracker, number=12)
    metrics = {"objective": 0.91304, "macro_f1": 0.9}
    tracker.close_trial(
        spec, TrialResult(12, 1, TrialState.COMPLETE, 3, 0.91304, metrics=metrics, tags={"model_uri": "models:/m-1"})
    )

    run = bench.run(spec.run_id)

    assert (run.info.run_name, run.info.status) == ("012  0.9130", "FINISHED")
    assert run.data.metrics == metrics
    expected = {"state": "complete", "epochs_run": "3", "model_uri": "models:/m-1"}
    assert {key: run.data.tags[key] for key in expected} == expected
    assert run.info.end_time is not None


def test_a_pruned_trial_keeps_what_it_had_reached(bench: Bench, name: str) -> None:
    tracker, _ = bench.tracker(name)
    spec = begun(tracker, number=7)
    tracker.log_epochs(spec.run_id, toy_report(spec, 1))
    tracker.close_trial(spec, TrialResult(7, 1, TrialState.PRUNED, 1))

    run = bench.run(spec.run_id)

    assert (run.info.run_name, run.info.status) == ("007  pruned at 1", "KILLED")
    assert (run.data.tags["state"], run.data.tags["epochs_run"]) == ("pruned", "1")
    assert "val_accuracy" in run.data.metrics


def test_a_failed_trial_shows_its_reason_and_its_traceback(bench: Bench, name: str) -> None:
    tracker, _ = bench.tracker(name)
    spec = begun(tracker, number=5)
    reason = FailReason.ERROR
    tracker.close_trial(spec, TrialResult(5, 1, TrialState.FAILED, 2, reason=reason, message="Traceback: boom"))

    run = bench.run(spec.run_id)

    assert (run.info.run_name, run.info.status) == ("005  error", "FAILED")
    assert [run.data.tags[name] for name in ("state", "reason", "cause")] == ["failed", "error", "Traceback: boom"]
    assert bench.text(spec.run_id, "failure.txt") == "Traceback: boom"


def test_an_interrupted_attempt_names_its_cause_and_successor(bench: Bench, name: str) -> None:
    tracker, _ = bench.tracker(name)
    first = begun(tracker, number=3)
    tracker.interrupt_trial(3, first.run_id, "signal SIGKILL", TrialState.WAITING)
    second = begun(tracker, number=3, attempt=2)
    tracker.supersede(first.run_id, second.run_id)

    run = bench.run(first.run_id)

    assert (run.info.run_name, run.info.status) == ("003  interrupted", "KILLED")
    expected = {"state": "interrupted", "cause": "signal SIGKILL", "superseded_by": second.run_id}
    assert {key: run.data.tags[key] for key in expected} == expected
    assert "superseded_by" not in bench.run(second.run_id).data.tags


def test_the_best_so_far_stands_on_the_study_s_run(bench: Bench, name: str) -> None:
    tracker, run_id = bench.tracker(name)
    for number, objective in ((0, 0.5), (4, 0.75)):
        tracker.log_best(number, objective)

    history = bench.client.get_metric_history(run_id, "best_objective")

    assert [(point.step, point.value) for point in history] == [(0, 0.5), (4, 0.75)]
    assert bench.run(run_id).data.metrics == {"best_objective": 0.75}


def test_a_study_ends_with_its_leaderboard_and_figures(bench: Bench, name: str) -> None:
    tracker, run_id = bench.tracker(name)
    records = [
        TrialRecord(1, TrialState.COMPLETE, {"epochs": 3}, 1, "run-1", 0.75, {1: 0.5}, None, 12.0),
        TrialRecord(0, TrialState.PRUNED, {"epochs": 2}, 1, "run-0", None, {1: 0.25}, None, 3.0),
    ]
    tracker.log_leaderboard(table(records))
    tracker.log_figure(Figure(), "history")
    tracker.close_study("FINISHED", {"best_trial": "1"})

    run = bench.run(run_id)
    assert (run.info.run_name, run.info.status) == (name, "FINISHED")
    assert run.data.tags["best_trial"] == "1"
    board = bench.client.load_table(bench.experiment_id, "leaderboard.json", run_ids=[run_id])
    assert list(board["trial"]) == [1, 0]
    assert list(board["state"]) == ["complete", "pruned"]
    assert board["objective"][0] == 0.75
    invocations = bench.client.load_table(bench.experiment_id, "invocations.json", run_ids=[run_id])
    assert list(invocations["sampler"]) == ["tpe"]
    assert bench.text(run_id, "leaderboard.csv").splitlines()[0].startswith("rank,trial,state,objective,epochs")
    assert bench.artifacts(run_id, "figures") == ["figures/history.png"]


FORMULAS = {
    "=1+1": "'=1+1",
    "+1": "'+1",
    "-1+cmd|' /C calc'!A0": "'-1+cmd|' /C calc'!A0",
    "@SUM(A1)": "'@SUM(A1)",
    "\t=1": "'\\t=1",
    "\r=1": "'\\r=1",
    "\n=1": "'\\n=1",
    "plain\r=1": "plain\\r=1",
    "plain\n=1": "plain\\n=1",
    '=HYPERLINK("http://x","y")': '\'=HYPERLINK("http://x","y")',
}


def test_no_cell_of_a_leaderboard_is_a_formula(bench: Bench, name: str) -> None:
    tracker, run_id = bench.tracker(name)
    rows = [{"rank": 1, "objective": -0.25, "=name": text, "seconds": None, "loss": -1e-5} for text in FORMULAS]
    tracker.log_leaderboard(pd.DataFrame(rows))

    heading, *lines = csv.reader(io.StringIO(bench.text(run_id, "leaderboard.csv"), newline=""))

    assert heading == ["rank", "objective", "'=name", "seconds", "loss"]
    assert [line[2] for line in lines] == list(FORMULAS.values())
    assert {(line[0], line[1], line[3], line[4]) for line in lines} == {("1", "-0.25", "", "-1e-05")}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (TrialResult(12, 1, TrialState.COMPLETE, 3, 0.91346), "012  0.9135"),
        (TrialResult(7, 1, TrialState.PRUNED, 3), "007  pruned at 3"),
        (TrialResult(5, 1, TrialState.FAILED, 1, reason=FailReason.DIVERGED), "005  diverged"),
        (TrialResult(1234, 2, TrialState.FAILED, 0, reason=FailReason.ERROR), "1234  error"),
    ],
)
def test_a_run_has_a_name_that_a_person_can_read(result: TrialResult, expected: str) -> None:
    assert run_name(result) == expected


def test_the_commit_is_this_code_s_not_another_checkout_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    installed = tmp_path / ".venv" / "runs.py"
    installed.parent.mkdir()
    installed.write_text("")
    monkeypatch.setattr(runs_module, "__file__", str(installed))
    git("init")
    git("commit", "--allow-empty", "--message", "somebody else's")
    assert runs_module.code_commit.__wrapped__() is None

    git("add", "--force", str(installed))
    git("commit", "--message", "this code")
    assert len(str(runs_module.code_commit.__wrapped__())) == 40
