"""The evidence that a contender leaves in MLflow: whether every trial is there in full, and under the right names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

# A contender's names for the validation accuracy of an epoch.
CURVES = ("val_accuracy", "validation_accuracy")
MATRICES = ("confusion_matrix.png", "confusion_matrix.json")


@dataclass(frozen=True)
class Evidence:
    """The trials that ran and those complete in MLflow, what is wrong, and the mean of their last accuracies."""

    trials: int
    complete: int
    complaints: tuple[str, ...]
    accuracy: float


def check_store(tracking_uri: str, trials: Sequence[Mapping[str, Any]]) -> Evidence:
    """Read every run that a contender has left and compare with what was asked of it."""
    client = MlflowClient(tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, run_view_type=ViewType.ALL)
    attempts = [run for run in runs if "learning_rate" in run.data.params]
    modelled = {
        model.source_run_id for model in client.search_logged_models(experiments) if str(model.status) == "READY"
    }
    asked = {_key(trial): trial for trial in trials}
    found: Counter[str] = Counter()
    complete, accuracies = 0, []
    for run in attempts:
        epochs = int(run.data.params.get("epochs", 0))
        curve = _curve(client, run)
        problems = [
            *_problems_of_params(run, asked),
            *_problems_of_curve(run, curve, epochs),
            *_problems_of_files(_files(client, run), run.info.run_id in modelled),
        ]
        found.update(problems)
        complete += not problems
        accuracies += curve[-1:]
    found.update(_mislabelled(client, attempts))
    if len(attempts) != len(trials):
        found[f"{len(attempts)} runs for {len(trials)} trials"] = 1
    complaints = tuple(f"{what} ({count} runs)" if count > 1 else what for what, count in found.items())
    return Evidence(len(attempts), complete, complaints, mean(accuracies) if accuracies else 0.0)


def _key(params: Mapping[str, Any]) -> tuple[float, ...]:
    names = ("filters_1", "filters_2", "filters_3", "learning_rate", "batch_size", "epochs")
    return tuple(float(params.get(name, "nan")) for name in names)


def _problems_of_params(run: Run, asked: Mapping[tuple[float, ...], object]) -> list[str]:
    problems = [] if _key(run.data.params) in asked else ["parameters are not those of any trial"]
    if run.info.status != "FINISHED":
        problems.append(f"status {run.info.status}")
    return problems


def _problems_of_curve(run: Run, curve: list[float], epochs: int) -> list[str]:
    if not any(name in run.data.metrics for name in CURVES):
        return ["no validation accuracy"]
    return [] if len(curve) == epochs else ["the validation accuracy has not one point an epoch"]


def _problems_of_files(files: set[str], is_modelled: bool) -> list[str]:
    """Accept a model beside the run, as MLflow 3 keeps it, or in it."""
    problems = [] if is_modelled or "MLmodel" in files else ["no model"]
    return problems if files & set(MATRICES) else [*problems, "no confusion matrix"]


def _curve(client: MlflowClient, run: Run) -> list[float]:
    """Return the validation accuracy of each epoch, one for each step."""
    name = next((name for name in CURVES if name in run.data.metrics), None)
    if name is None:
        return []
    by_step = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
    return [by_step[step] for step in sorted(by_step)]


def _mislabelled(client: MlflowClient, runs: Sequence[Run]) -> Counter[str]:
    """Find what is there, but says something else than it should."""
    found: Counter[str] = Counter()
    for run in runs:
        for name in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, name)
            if len(history) > 1 and len({metric.step for metric in history}) == 1:
                found[f"all values of {name} stand at step {history[0].step}"] += 1
    return found


def _files(client: MlflowClient, run: Run) -> set[str]:
    """Name every file of a run, without its folder."""
    names: set[str] = set()
    folders = [""]
    while folders:
        for entry in client.list_artifacts(run.info.run_id, folders.pop() or None):
            if entry.is_dir:
                folders.append(entry.path)
            else:
                names.add(Path(entry.path).name)
    return names
