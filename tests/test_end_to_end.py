import json
import math
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from fashion_study.data.catalog import load_dataset, locate
from fashion_study.space.file import load_space
from tests.support.commands import call_command
from tests.support.finished import copy_store
from tests.support.study_command import PATIENCE, ROOT, STUDY, Evidence, Start, command, look, read_back, start_here

SPACE = load_space("smoke")
CURVES = {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "epoch_seconds", "images_per_second"}
EVIDENCE = {
    "confusion_matrix.png",
    "confusion_matrix.json",
    "classification_report.json",
    "predictions.png",
    "most_confused.json",
}
FINALISTS = ("--finalists", "2", "--repeats", "2")
DOOMED_SPACE = """
name: doomed
purpose: No trial of this space can be trained.
baseline: {learning_rate: 10.0}
parameters:
  learning_rate: {type: float, low: 9.0, high: 10.0, why: A thousand times what can be fitted.}
# Wide, so that not all its units can die before one explodes.
fixed:
  {filters_1: 64, filters_2: 8, filters_3: 8, dense_units: 256, optimizer: sgd, decay: 0.0,
   batch_size: 8, epochs: 2, input_scale: raw}
"""


@pytest.fixture(scope="module")
def first(commanded_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    root = tmp_path_factory.mktemp("study")
    printed = ((commanded_study / name).read_text(encoding="utf-8") for name in ("output", "errors"))
    done = subprocess.CompletedProcess([], 0, *printed)
    return look(copy_store(commanded_study / "store", root / "store"), root / "first", done)


@pytest.fixture(scope="module")
def again(first: Start) -> Start:
    return start_here(first.store, first.store.parent / "again", "--trials", "4", "--workers", "2", *FINALISTS)


@pytest.fixture(scope="module")
def extended(again: Start) -> Start:
    return start_here(again.store, again.store.parent / "extended", "--trials", "6", "--workers", "1")


@pytest.fixture
def default_store(first: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{first.store}/mlflow.db")


def complete(evidence: Evidence) -> dict[int, FrozenTrial]:
    return {number: trial for number, trial in evidence.trials.items() if trial.state is TrialState.COMPLETE}


def confusion_of(evidence: Evidence, run: Run) -> npt.NDArray[np.int64]:
    return np.array(evidence.table(run, "confusion_matrix.json")["counts"])


def test_a_study_runs_its_trials_and_names_the_best(first: Start) -> None:
    trials = first.evidence.trials
    assert sorted(trials) == [0, 1, 2, 3]
    assert {trial.state for trial in trials.values()} <= {TrialState.COMPLETE, TrialState.WAITING}
    paused = [trial for trial in trials.values() if trial.state is TrialState.WAITING]
    assert all(trial.user_attrs["paused_at"] == max(trial.intermediate_values) for trial in paused)
    best = max(complete(first.evidence).values(), key=lambda trial: (trial.value, -trial.number))
    named = "The baseline trial itself" if best.number == 0 else f"Best: trial {best.number:03d}"
    assert re.search(rf"^{named} .*with {best.value:.4f}", first.output, re.MULTILINE)
    assert "4 of 4 trials done, 4 of them now" in first.output
    assert first.errors == ""


def test_a_study_leaves_no_temporary_files(commanded_study: Path) -> None:
    assert list((commanded_study / "scratch").iterdir()) == []


def test_trial_0_is_the_baseline_and_is_complete(first: Start) -> None:
    baseline = first.evidence.trials[0]
    assert baseline.params == SPACE.baseline
    assert baseline.state is TrialState.COMPLETE


def test_the_study_s_run_has_settings_and_results(first: Start) -> None:
    parent, trials = first.evidence.parent, complete(first.evidence)
    best = max(trials.values(), key=lambda trial: (trial.value, -trial.number))
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", STUDY)
    data = locate("digits")
    assert parent.data.params == {
        "space": "smoke",
        "space_digest": SPACE.digest,
        "dataset": "digits",
        "data_digest": data.digest,
        "seed": "0",
        "limit_train": "None",
        "precision": "float32",
        "training_version": "3",
    }
    expected = {
        "kind": "study",
        "study": STUDY,
        "sampler": "tpe",
        "pruner": "asha",
        "trials": "4",
        "workers": "2",
        "trials_counted": "4",
        "best_trial": str(best.number),
        "best_run": best.user_attrs["run_id"],
    }
    assert {name: parent.data.tags.get(name) for name in expected} == expected
    busy = parent.data.metrics["workers_busy_share"]
    assert f"Workers: busy {100 * busy:.1f} %" in first.output
    assert parent.data.metrics == {"best_objective": best.value, "workers_busy_share": busy}


def test_the_study_s_run_has_the_command_that_repeats_it(first: Start) -> None:
    words = shlex.split(first.evidence.parent.data.tags["command"])
    assert words[:3] == ["python", "-m", "experiments.run_study"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options == {
        "--space": "smoke",
        "--dataset": "digits",
        "--trials": "4",
        "--workers": "2",
        "--finalists": "2",
        "--repeats": "2",
        "--sampler": "tpe",
        "--pruner": "asha",
        "--seed": "0",
        "--precision": "float32",
    }


# MLflow's client looks for a table's runs in the store that the environment names.
@pytest.mark.usefixtures("default_store")
def test_the_study_s_run_has_space_leaderboard_and_figures(first: Start) -> None:
    evidence, files = first.evidence, first.parent_files
    assert (files / "space.yaml").read_text() == SPACE.source_text
    leaderboard = pd.read_csv(files / "leaderboard.csv")
    assert leaderboard["rank"].tolist() == [1, 2, 3, 4]
    assert sorted(leaderboard["trial"]) == [0, 1, 2, 3]
    objectives = leaderboard["objective"].dropna()
    assert objectives.is_monotonic_decreasing
    assert set(objectives) == {trial.value for trial in complete(evidence).values()}
    viewed = evidence.client.load_table(
        evidence.parent.info.experiment_id, "leaderboard.json", [evidence.parent.info.run_id]
    )
    assert viewed["run_id"].tolist() == leaderboard["run_id"].tolist()
    figures = {"learning_curves", "timeline", "optimization_history", "slices"}
    if len(complete(evidence)) > 1:
        figures.add("parallel_coordinates")
    if len(complete(evidence)) == 4:
        figures.add("parameter_importances")
    assert {path.stem for path in (files / "figures").iterdir()} == figures
    for path in (files / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_every_trial_is_one_nested_run_linked_both_ways(first: Start) -> None:
    evidence = first.evidence
    assert len(evidence.runs) == 4
    for number, trial in evidence.trials.items():
        run = evidence.run_of(number)
        assert run.data.tags["trial"] == str(number)
        assert run.data.tags["study"] == STUDY
        assert run.info.status == ("FINISHED" if trial.state is TrialState.COMPLETE else "SCHEDULED")


def test_a_run_is_named_for_a_person_and_tagged_for_a_search(first: Start) -> None:
    evidence = first.evidence
    seeds = {run.data.tags["seed"] for run in evidence.runs.values()}
    assert len(seeds) == 4
    for number, trial in evidence.trials.items():
        run = evidence.run_of(number)
        done = trial.state is TrialState.COMPLETE
        ending = f"{trial.value:.4f}" if done else f"paused at {max(trial.intermediate_values)}"
        assert run.info.run_name == f"{number:03d}  {ending}"
        expected = {"state": "complete" if done else "paused", "precision": "float32", "attempt": "1", "kind": "trial"}
        assert {name: run.data.tags.get(name) for name in expected} == expected
        assert all(run.data.tags.get(name) for name in ("code_version", "host"))


def test_a_run_has_every_hyperparameter_the_fixed_ones_too(first: Start) -> None:
    for number, trial in first.evidence.trials.items():
        wanted = SPACE.hyperparameters(trial.params).model_dump()
        assert first.evidence.run_of(number).data.params == {name: str(value) for name, value in wanted.items()}


def test_a_run_has_a_point_of_every_curve_for_every_epoch(first: Start) -> None:
    evidence = first.evidence
    for number, trial in evidence.trials.items():
        run = evidence.run_of(number)
        epochs = trial.params["epochs"] if trial.state is TrialState.COMPLETE else max(trial.intermediate_values)
        assert run.data.tags["epochs_run"] == str(epochs)
        for name in CURVES:
            points = evidence.client.get_metric_history(run.info.run_id, name)
            assert [point.step for point in points] == list(range(1, epochs + 1)), name
            assert all(np.isfinite(point.value) and point.value > 0 for point in points), name
        told = {
            point.step: point.value for point in evidence.client.get_metric_history(run.info.run_id, "val_accuracy")
        }
        assert told == trial.intermediate_values


def test_the_objective_is_the_same_wherever_it_is_read(first: Start) -> None:
    evidence = first.evidence
    for number, trial in complete(evidence).items():
        run = evidence.run_of(number)
        confusion = confusion_of(evidence, run)
        assert trial.value == run.data.metrics["objective"] == np.trace(confusion) / confusion.sum()
        assert trial.value == pytest.approx(max(trial.intermediate_values.values()))


def test_the_final_metrics_follow_from_the_confusion_matrix(first: Start) -> None:
    evidence = first.evidence
    for number in complete(evidence):
        run = evidence.run_of(number)
        metrics, confusion = run.data.metrics, confusion_of(evidence, run)
        hits, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
        assert [metrics[f"recall_{digit}"] for digit in range(10)] == pytest.approx(list(hits / true))
        assert metrics["macro_f1"] == pytest.approx(float(np.mean(2 * hits / (true + predicted))))
        assert metrics["best_val_accuracy"] >= metrics["objective"] - 1e-6
        epochs = evidence.client.get_metric_history(run.info.run_id, "epoch_seconds")
        assert metrics["train_seconds"] == pytest.approx(sum(point.value for point in epochs))
        assert metrics["ms_per_image"] > 0


def test_a_complete_trial_leaves_its_figures_and_tables(first: Start) -> None:
    evidence = first.evidence
    for number in complete(evidence):
        run = evidence.run_of(number)
        assert evidence.artifacts(run) == EVIDENCE
        for name in EVIDENCE:
            if name.endswith(".png"):
                path = Path(evidence.client.download_artifacts(run.info.run_id, name))
                assert path.read_bytes().startswith(b"\x89PNG")
        report = evidence.table(run, "classification_report.json")
        assert report["accuracy"] == pytest.approx(run.data.metrics["objective"])
        confusion = confusion_of(evidence, run)
        pairs = evidence.table(run, "most_confused.json")["pairs"]
        mistakes = confusion - np.diag(np.diag(confusion))
        assert pairs[0]["count"] == mistakes.max()
        assert confusion[int(pairs[0]["true"]), int(pairs[0]["predicted"])] == mistakes.max()


def test_runs_name_the_images_they_read_with_their_digest(first: Start) -> None:
    evidence = first.evidence
    digest = load_dataset(locate("digits")).split_digest[:36]
    for run in (evidence.parent, *evidence.runs.values()):
        assert run.inputs is not None
        read = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
        assert {context: dataset.name for context, dataset in read.items()} == {
            "training": "digits-training",
            "validation": "digits-validation",
        }
        assert {dataset.digest for dataset in read.values()} == {digest}
        sizes = {context: json.loads(str(dataset.profile))["images"] for context, dataset in read.items()}
        assert sizes == {"training": 1079, "validation": 359}


@pytest.mark.usefixtures("default_store")
def test_every_logged_model_reaches_exactly_its_objective(first: Start) -> None:
    validation = load_dataset(locate("digits")).validation
    for number, trial in complete(first.evidence).items():
        run = first.evidence.run_of(number)
        model = mlflow.keras.load_model(run.data.tags["model_uri"], load_model_kwargs={"safe_mode": True})
        predicted = model.predict(validation.images, verbose=0).argmax(axis=1)
        assert np.mean(predicted == validation.labels) == trial.value
        assert model.count_params() == run.data.metrics["parameter_count"]
        assert {layer.compute_dtype for layer in model.layers} == {"float32"}
        assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
        assert run.outputs is not None
        (output,) = run.outputs.model_outputs
        assert run.data.tags["model_uri"] == f"models:/{output.model_id}"
    keras.backend.clear_session()


@pytest.mark.usefixtures("default_store")
def test_a_logged_model_takes_raw_pixels(first: Start) -> None:
    validation = load_dataset(locate("digits")).validation
    trial = first.evidence.trials[0]
    model = mlflow.pyfunc.load_model(first.evidence.run_of(0).data.tags["model_uri"])
    raw = validation.images.astype(np.float32)
    assert (raw.min(), raw.max()) == (0, 255)
    probabilities = model.predict(raw)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(raw)), abs=1e-5)
    assert np.mean(probabilities.argmax(axis=1) == validation.labels) == trial.value


def test_the_finalists_repeats_are_on_the_study_s_run(first: Start) -> None:
    evidence = first.evidence
    ranked = sorted(complete(evidence).values(), key=lambda trial: -float(trial.value or 0))
    by_trial = {
        trial.number: [run for run in evidence.repeats if run.data.tags["trial"] == str(trial.number)]
        for trial in ranked
    }
    assert [len(runs) for runs in by_trial.values()] == [2, 2] + [0] * (len(ranked) - 2)
    assert {run.info.status for run in evidence.repeats} == {"FINISHED"}
    assert (
        len(
            {run.data.tags["seed"] for run in evidence.repeats}
            | {run.data.tags["seed"] for run in evidence.runs.values()}
        )
        == 8
    )
    told = evidence.table(evidence.parent, "finalists.json")
    for finalist in told["finalists"]:
        reached = {run.info.run_id: run.data.metrics["objective"] for run in by_trial[finalist["trial"]]}
        assert dict(zip(finalist["run_ids"], finalist["objectives"], strict=True)) == reached
    assert told["winner"] == max(told["finalists"], key=lambda finalist: finalist["lower_bound"])["trial"]


def test_the_winner_s_median_repeat_is_the_challenger(first: Start) -> None:
    evidence = first.evidence
    version = evidence.client.get_model_version_by_alias("digits-cnn", "challenger")
    told = evidence.table(evidence.parent, "finalists.json")
    (winner,) = (finalist for finalist in told["finalists"] if finalist["trial"] == told["winner"])
    (run,) = (run for run in evidence.repeats if run.info.run_id == version.run_id)
    assert version.run_id in winner["run_ids"]
    assert version.tags["model_sha256"] == run.data.tags["model_sha256"]
    assert (version.tags["study"], version.tags["trial"]) == (STUDY, str(told["winner"]))
    assert float(version.tags["objective"]) == pytest.approx(winner["mean"])
    told_of = f"trial {told['winner']:03d}, mean {winner['mean']:.4f}"
    assert f"Registered: digits-cnn version 1 is the challenger ({told_of})." in first.output


def test_repeated_trainings_are_the_same_to_the_bit(first: Start, tmp_path: Path) -> None:
    store = shutil.copytree(first.store, tmp_path / "store")
    # The last to be trained, in a worker that had trained others before it.
    trial, repeat = max(first.evidence.trials), first.evidence.repeats[0]
    run_id = first.evidence.run_of(trial).info.run_id
    ((there,),) = rows(store, "select value from metrics where key = 'val_loss' and step = 1 and run_uuid = ?", run_id)
    altered = math.nextafter(there, 1)
    with closing(sqlite3.connect(store / "mlflow.db")) as database, database:
        change = "update metrics set value = ? where key = 'val_loss' and step = 1 and run_uuid = ?"
        database.execute(change, (altered, run_id))
    before = rows(store, "select key, value, run_uuid, step from metrics order by 1, 2, 3, 4")

    replay = ("experiments.replay", "--store", str(store))
    in_a_process = [sys.executable, "-m", *replay, str(trial)]
    replays = (
        subprocess.run(in_a_process, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False),
        call_command(*replay, repeat.info.run_id[:8]),
    )
    of_trial, of_repeat = (each.stdout for each in replays)

    assert [each.returncode for each in replays] == [1, 0], of_trial + of_repeat + "".join(e.stderr for e in replays)
    assert [each.stderr for each in replays] == ["", ""]
    same, figures = map(int, re.findall(r"is not the same: (\d+) of (\d+) figures are", of_trial)[0])
    assert same == figures - 1
    assert f"in epoch 1, is val_loss: {altered!r} recorded, {there!r} again." in of_trial
    assert f"Trial {int(repeat.data.tags['trial']):03d} repeat " in of_repeat
    # Four figures of each epoch; in the end: how it ended, objective, mean F1, parameters, ten recalls, weights, the
    # best epoch and its accuracy, accuracy and loss of the last one, and the accuracy with and without views.
    epochs = int(repeat.data.tags["epochs_run"])
    assert f"is the same to the bit: {4 * epochs + 21} of {4 * epochs + 21} figures." in of_repeat
    for said in (of_trial, of_repeat):
        assert "Different here" not in said
        assert "Not recorded" not in said
    assert rows(store, "select key, value, run_uuid, step from metrics order by 1, 2, 3, 4") == before
    assert len(list(store.rglob("*.log"))) == len(list(first.store.rglob("*.log")))


def rows(store: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        return database.execute(query, values).fetchall()


def test_the_same_command_again_registers_nothing_twice(first: Start, again: Start) -> None:
    versions = again.evidence.client.search_model_versions("name = 'digits-cnn'")
    assert min(int(version.version) for version in versions) == 1
    assert [version.tags["run"] for version in versions].count(versions[-1].tags["run"]) == 1
    assert len(again.evidence.repeats) == len(first.evidence.repeats)


def test_the_same_command_again_finds_nothing_left_to_do(first: Start, again: Start) -> None:
    assert again.exit_code == 0, again.errors
    assert "Nothing left to do: 4 of 4 trials were done already." in again.output
    before, after = first.evidence, again.evidence
    assert after.runs.keys() == before.runs.keys()
    assert after.trials == before.trials
    assert after.parent.info.end_time == before.parent.info.end_time


def test_a_higher_total_adds_only_what_is_missing(first: Start, extended: Start) -> None:
    assert extended.exit_code == 0, extended.errors
    assert "6 of 6 trials done, 2 of them now" in extended.output
    before, after = first.evidence, extended.evidence
    assert sorted(after.trials) == [0, 1, 2, 3, 4, 5]
    assert {number: after.trials[number] for number in before.trials} == before.trials
    assert len(after.runs) == 6
    assert before.runs.keys() < after.runs.keys()
    assert after.parent.info.run_id == before.parent.info.run_id
    assert after.parent.info.status == "FINISHED"
    assert sorted(pd.read_csv(extended.parent_files / "leaderboard.csv")["trial"]) == [0, 1, 2, 3, 4, 5]
    starts = json.loads((extended.parent_files / "invocations.json").read_text())
    assert [int(row[starts["columns"].index("trials")]) for row in starts["data"]] == [4, 6]


def test_another_seed_is_refused_with_the_difference(extended: Start) -> None:
    refused = start_here(extended.store, extended.store.parent / "refused", "--trials", "9", "--seed", "1")
    assert refused.exit_code == 2
    assert "seed: stored 0, asked for 1" in refused.errors
    assert "--study" in refused.errors
    assert "Traceback" not in refused.errors
    assert refused.evidence.trials == extended.evidence.trials
    assert refused.evidence.runs.keys() == extended.evidence.runs.keys()


def test_a_study_whose_trials_all_diverge_ends_with_1(tmp_path: Path) -> None:
    space = tmp_path / "doomed.yaml"
    space.write_text(DOOMED_SPACE)
    done = call_command(*command(tmp_path / "store", "--trials", "2", "--workers", "1", space=str(space))[2:])
    assert done.returncode == 1, done.stdout + done.stderr
    assert "No trial is complete" in done.stdout
    evidence = read_back(tmp_path / "store", "digits-doomed")
    assert [trial.state for trial in evidence.trials.values()] == [TrialState.FAIL] * 2
    assert len(evidence.runs) == 2
    for number, trial in evidence.trials.items():
        run = evidence.run_of(number)
        assert (run.info.status, run.info.run_name) == ("FAILED", f"{number:03d}  diverged")
        assert run.data.tags["reason"] == trial.user_attrs["reason"] == "diverged"
        failure = Path(evidence.client.download_artifacts(run.info.run_id, "failure.txt"))
        assert "The loss became" in failure.read_text()
    assert evidence.parent.info.status == "FINISHED"
