import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console

from fashion_study.baseline.reproduce import Figures, Reproduction, comparison, reproduce_baseline
from fashion_study.data.catalog import describe, locate
from fashion_study.store.store import open_store
from fashion_study.tracking.aliases import promotion_lock
from fashion_study.trial import DataSource, Hyperparameters
from tests.faults.table import RecordFault
from tests.support.processes import started_process

ROOT = Path(__file__).parents[2]


def command(store: Path, *options: str) -> list[str]:
    entry_point = [sys.executable, "-m", "experiments.reproduce_baseline"]
    return [*entry_point, "--dataset", "digits", "--store", str(store), *options]


def runs_in(store: Path) -> tuple[MlflowClient, list[Run]]:
    opened = open_store(store)
    client = opened.client()
    return client, client.search_runs([opened.experiment_id(client, "digits")])


def shown(reproduction: Reproduction) -> list[list[str]]:
    """Return the table's rows as a terminal shows them, each as its cells."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(comparison(reproduction))
    return [re.split(" {2,}", line.strip()) for line in capture.get().splitlines()]


def reproduction_on(dataset: str, seeds: int) -> Reproduction:
    source = DataSource(dataset, None, "")
    names = describe(dataset).class_names
    many = tuple(
        Figures(0.875 + 0.01 * seed, 0.85, dict.fromkeys(names, (0.5 + 0.1 * seed, 0.25))) for seed in range(seeds)
    )
    return Reproduction(source, "", {"raw": many, "unit": many})


@pytest.fixture(scope="module")
def reproduced(reproduction: Path) -> tuple[Path, str]:
    return reproduction / "demo", (reproduction / "printed").read_text(encoding="utf-8")


def test_the_model_on_raw_pixels_becomes_the_first_champion(
    reproduced: tuple[Path, str],
) -> None:
    client, runs = runs_in(reproduced[0])
    version = client.get_model_version_by_alias("digits-cnn", "champion")
    (run,) = (run for run in runs if run.info.run_id == version.run_id)
    assert run.data.tags["input_scale"] == "raw"
    assert version.tags["model_sha256"] == run.data.tags["model_sha256"]
    assert "study" not in version.tags
    assert "Registered: digits-cnn version 1 (champion: there was none)" in reproduced[1]


def test_both_input_scales_become_runs_under_one_parent_run(reproduced: tuple[Path, str]) -> None:
    _, runs = runs_in(reproduced[0])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = (run for run in runs if run.data.tags["kind"] == "baseline reproduction")
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.data.tags["input_scale"] for run in children) == ["raw", "unit"]
    for run in children:
        scale = run.data.tags["input_scale"]
        blog = Hyperparameters(input_scale="raw" if scale == "raw" else "unit")
        assert {name: run.data.params[name] for name in blog.model_dump()} == {
            name: str(value) for name, value in blog.model_dump().items()
        }
        assert parent.data.metrics[f"{scale}_holdout_accuracy_mean"] == run.data.metrics["holdout_accuracy"]


def test_it_trains_on_the_pool_and_counts_holdout_readings(
    reproduced: tuple[Path, str],
) -> None:
    _, runs = runs_in(reproduced[0])
    readings = {run.info.run_name: run.data.metrics["holdout_readings"] for run in runs}
    assert readings == {"baseline reproduction": 2, "baseline raw, seed 0": 1, "baseline unit, seed 0": 1}
    trained_on = {run.data.params["train_images"] for run in runs if "train_images" in run.data.params}
    assert trained_on == {str(1797 - 359)}


def test_each_training_keeps_its_curves_figures_and_model(reproduced: tuple[Path, str]) -> None:
    client, runs = runs_in(reproduced[0])
    for run in (run for run in runs if run.data.tags["kind"] == "baseline"):
        curve = client.get_metric_history(run.info.run_id, "train_accuracy")
        assert [point.step for point in curve] == list(range(1, 11))
        assert run.data.metrics["parameter_count"] == 93_322
        assert 0 <= run.data.metrics["holdout_recall_7"] <= 1
        artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert {"confusion_matrix.png", "predictions.png", "classification_report.json"} <= artifacts
        assert run.outputs is not None
        assert len(run.outputs.model_outputs) == 1


def test_the_command_prints_the_table_and_where_the_runs_are(reproduced: tuple[Path, str]) -> None:
    store, output = reproduced
    _, runs = runs_in(store)
    (parent,) = (run for run in runs if run.data.tags["kind"] == "baseline reproduction")
    assert parent.info.run_id in output
    assert "The baseline on digits" in output
    assert f"{100 * parent.data.metrics['raw_holdout_accuracy_mean']:.1f} %" in output
    assert "raw, seed 0: epoch 10" in output


def test_only_fashion_mnist_is_compared_with_the_post() -> None:
    rows = {row[0]: row[1:] for row in shown(reproduction_on("fashion-mnist", seeds=1))}
    assert rows["accuracy"][0] == "the post"
    assert rows["train"] == ["87.7 %", "87.5 %", "87.5 %"]
    assert rows["holdout"] == ["85.0 %", "85.0 %", "85.0 %"]
    assert rows["Ankle boot"] == ["0.98", "0.89", *["0.50", "0.25"] * 2]

    digits = {row[0]: row[1:] for row in shown(reproduction_on("digits", seeds=1))}
    assert "the post" not in digits["accuracy"]
    assert digits["train"] == ["87.5 %", "87.5 %"]


def test_several_seeds_are_shown_as_mean_and_standard_deviation() -> None:
    rows = {row[0]: row[1:] for row in shown(reproduction_on("fashion-mnist", seeds=3))}
    assert rows["train"] == ["87.7 %", "88.5 ± 1.0 %", "88.5 ± 1.0 %"]
    assert rows["Bag"][2].split() == ["0.60±0.10", "0.25±0.00"]


@pytest.mark.faults
def test_ctrl_c_ends_the_trainings_and_leaves_no_run_open(tmp_path: Path, record_fault: RecordFault) -> None:
    with started_process(
        command(tmp_path, "--seeds", "50"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(("raw, seed 0", "unit, seed 0"))
        trainings = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=600)
    assert process.returncode == 130
    assert trainings
    assert psutil.wait_procs(trainings, timeout=30)[1] == []
    _, runs = runs_in(tmp_path)
    assert {run.info.status for run in runs} <= {"KILLED", "FINISHED"}
    assert {run.info.status for run in runs if run.data.tags["kind"] == "baseline reproduction"} == {"KILLED"}
    record_fault("Ctrl-C in a reproduction of the baseline", "I2 I6", phases={"epoch": 1})


def test_importing_the_reproduction_loads_no_tensorflow() -> None:
    code = "import sys, fashion_study.baseline.reproduce; print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.faults
def test_beside_a_promotion_a_model_is_registered_not_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_fault: RecordFault
) -> None:
    monkeypatch.setattr("fashion_study.baseline.reproduce.PROMOTION_SECONDS", 0.0)
    with promotion_lock(tmp_path):
        done = reproduce_baseline(locate("digits"), open_store(tmp_path), register=True)
    assert done.version == "digits-cnn version 1 (not champion: a promotion or the doctor is at work there)"
    client, runs = runs_in(tmp_path)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert "champion" not in client.get_registered_model("digits-cnn").aliases
    record_fault("a promotion while a reproduction registers its model", "I2 I8")


def test_a_folder_without_images_is_refused_before_a_store(tmp_path: Path) -> None:
    options = ["--dataset", "fashion-mnist", "--data-dir", str(tmp_path / "nowhere")]
    refused = command(tmp_path / "store", *options)
    done = subprocess.run(refused, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert "nowhere" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_number_of_seeds_below_one_is_refused(tmp_path: Path) -> None:
    refused = command(tmp_path, "--seeds", "0")
    done = subprocess.run(refused, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--seeds" in done.stderr
