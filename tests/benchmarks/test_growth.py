from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient

from benchmarks.growth import grow
from benchmarks.toy_study import open_toy_study
from fashion_study.testing.memory import MemoryExecutor
from fashion_study.trial import TrialState

EPOCHS, RAN, SIZE = 5, 16, 40


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grown")
    open_toy_study(root, EPOCHS).run(RAN, MemoryExecutor(2))
    grow(root, SIZE)
    return root


def test_optuna_reads_a_grown_study_of_different_trials(grown: Path) -> None:
    trials = optuna.load_study(study_name="toy", storage=f"sqlite:///{grown / 'optuna.db'}").trials

    assert [trial.number for trial in trials] == list(range(SIZE))
    copies = trials[RAN:]
    for trial in copies:
        assert trial.state.is_finished()
        assert set(trial.params) == set(trials[0].params)
        assert 1 <= len(trial.intermediate_values) <= EPOCHS
    # An accuracy is cut off at 1.
    values = [trial.value for trial in copies if trial.state.name == "COMPLETE" and trial.value != 1.0]
    assert len(set(values)) == len(values) > 0
    assert len({trial.params["learning_rate"] for trial in copies}) == len(copies)
    assert len({trial.user_attrs["run_id"] for trial in trials}) == SIZE


def test_mlflow_reads_a_whole_run_for_every_copied_trial(grown: Path) -> None:
    client = MlflowClient(f"sqlite:///{grown / 'mlflow.db'}")
    trials = optuna.load_study(study_name="toy", storage=f"sqlite:///{grown / 'optuna.db'}").trials
    original = client.get_run(trials[0].user_attrs["run_id"])
    assert original.inputs is not None
    data = {entry.dataset.name for entry in original.inputs.dataset_inputs}
    assert len(data) == 2

    for trial in trials[RAN:]:
        run = client.get_run(trial.user_attrs["run_id"])
        assert run.data.tags["trial"] == str(trial.number)
        assert set(run.data.params) == set(original.data.params)
        curve = client.get_metric_history(run.info.run_id, "val_accuracy")
        assert [point.step for point in curve] == sorted(trial.intermediate_values)
        assert run.inputs is not None
        assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == data


def test_a_grown_study_goes_on(grown: Path) -> None:
    study = open_toy_study(grown, EPOCHS)
    before = study.trial_storage.counted()

    study.run(2, MemoryExecutor(2))

    assert study.trial_storage.counted() == before + 2
    assert {record.state for record in study.trial_storage.records()[SIZE:]} <= {TrialState.COMPLETE, TrialState.PRUNED}
