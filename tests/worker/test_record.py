import hashlib
import json
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import matplotlib as mpl
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.pyfunc.scoring_server import invocations
from mlflow.utils import requirements_utils

from fashion_study.data.dataset import Dataset
from fashion_study.training.evaluation import Evaluation, evaluate
from fashion_study.training.model import build_model, to_float32
from fashion_study.trial import Hyperparameters, Precision
from fashion_study.worker.record import record_evaluation, record_model
from tests.support.empty_store import empty_store

PARAMS = Hyperparameters(filters_1=4, filters_2=6, filters_3=8, dense_units=12, input_scale="unit")


class Recorded:
    """One run with everything a worker writes into it, in a store of its own."""

    def __init__(self, root: Path, data: Dataset) -> None:
        store = empty_store(root)
        self.tracking_uri = store.tracking_uri
        self.client: MlflowClient = store.client()
        self.run_id = self.client.create_run(store.experiment_id(self.client, "digits")).info.run_id
        model = build_model(PARAMS, data.image_shape, 10, Precision.BFLOAT16)
        model.train_on_batch(data.train.images[:64], data.train.labels[:64])
        self.model = to_float32(model, PARAMS)
        self.evaluation: Evaluation = evaluate(self.model, data.validation, data.class_names)
        self.sums = record_evaluation(self.client, self.run_id, self.evaluation, data.validation, seed=0)
        self.logged = record_model(self.client, self.run_id, self.model, PARAMS)
        self.folder = Path(self.client.download_artifacts(self.run_id, "", str(root)))
        self.model_id = self.logged.uri.removeprefix("models:/")
        location = self.client.get_logged_model(self.model_id).artifact_location
        self.model_folder = Path(mlflow.artifacts.download_artifacts(location))

    def table(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("store"), digits)


@pytest.fixture
def default_store(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorded.tracking_uri)


def test_figures_are_the_same_bytes_whatever_a_matplotlibrc_has(recorded: Recorded, digits: Dataset) -> None:
    with mpl.rc_context({"savefig.dpi": 30, "savefig.facecolor": "black", "font.size": 20, "image.origin": "lower"}):
        sums = record_evaluation(recorded.client, recorded.run_id, recorded.evaluation, digits.validation, seed=0)
    assert sums == recorded.sums


def test_the_run_goes_on_and_no_run_becomes_the_active_one(recorded: Recorded) -> None:
    assert recorded.client.get_run(recorded.run_id).info.status == "RUNNING"
    assert mlflow.active_run() is None


def test_a_run_holds_the_figures_and_tables_of_its_evaluation(recorded: Recorded) -> None:
    found = {artifact.path for artifact in recorded.client.list_artifacts(recorded.run_id)}
    assert found == {
        "confusion_matrix.png",
        "confusion_matrix.json",
        "classification_report.json",
        "predictions.png",
        "most_confused.json",
    }
    for name in ("confusion_matrix.png", "predictions.png"):
        assert (recorded.folder / name).read_bytes().startswith(b"\x89PNG")
    files = sorted(recorded.folder / name for name in found)
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert recorded.sums.splitlines() == [f"{digest}  {file.name}" for digest, file in zip(digests, files, strict=True)]


def test_the_tables_say_what_the_evaluation_says(recorded: Recorded, digits: Dataset) -> None:
    confusion = recorded.table("confusion_matrix.json")
    assert confusion["counts"] == recorded.evaluation.confusion.tolist()
    assert confusion["classes"] == list(digits.class_names)
    assert (confusion["rows"], confusion["columns"]) == ("true", "predicted")
    report = recorded.table("classification_report.json")
    assert report["accuracy"] == pytest.approx(recorded.evaluation.accuracy)


def test_the_ten_most_confused_pairs_come_first(recorded: Recorded, digits: Dataset) -> None:
    confusion, pairs = recorded.evaluation.confusion, recorded.table("most_confused.json")["pairs"]
    found = [
        (-pair["count"], *(digits.class_names.index(pair[side]) for side in ("true", "predicted"))) for pair in pairs
    ]
    mistakes = [(-count, *cell) for cell, count in np.ndenumerate(confusion) if count and cell[0] != cell[1]]
    assert found == sorted(mistakes)[:10]
    for pair, (count, true, _) in zip(pairs, found, strict=True):
        assert pair["share"] == pytest.approx(-count / confusion[true].sum())


def test_confused_images_are_indexed_surest_mistakes_first(recorded: Recorded, digits: Dataset) -> None:
    found, predicted = recorded.table("most_confused.json"), recorded.evaluation.predicted
    assert found["mistakes"] == np.flatnonzero(predicted != digits.validation.labels).tolist()
    for pair in found["pairs"]:
        true, taken_for = (digits.class_names.index(pair[side]) for side in ("true", "predicted"))
        assert len(pair["examples"]) == min(pair["count"], 6)
        assert set(digits.validation.labels[pair["examples"]]) == {true}
        sureness = recorded.evaluation.probabilities[pair["examples"]]
        assert set(sureness.argmax(axis=1)) == {taken_for}
        assert (np.diff(sureness[:, taken_for]) <= 0).all()


@pytest.mark.usefixtures("default_store")
@pytest.mark.parametrize("address", ["models:/{model_id}", "runs:/{run_id}/model"])
def test_the_logged_model_predicts_what_was_evaluated(recorded: Recorded, digits: Dataset, address: str) -> None:
    uri = address.format(model_id=recorded.model_id, run_id=recorded.run_id)
    model = mlflow.keras.load_model(uri, load_model_kwargs={"safe_mode": True})
    found = model.predict(digits.validation.images, verbose=0)
    np.testing.assert_allclose(found, recorded.evaluation.probabilities, atol=1e-5)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}


def test_a_model_file_has_keras_layers_and_weights_only(recorded: Recorded) -> None:
    path = recorded.model_folder / "data" / "model.keras"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == recorded.logged.sha256
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        weights = archive.read("model.weights.h5")
    assert b"optimizer" not in weights
    assert not config.get("compile_config")
    assert {layer["module"] for layer in config["config"]["layers"]} == {"keras.layers"}
    assert {layer["registered_name"] for layer in config["config"]["layers"]} == {None}
    loaded = keras.saving.load_model(path, safe_mode=True)
    assert loaded.count_params() == recorded.model.count_params()


def test_what_the_model_needs_is_pinned(recorded: Recorded) -> None:
    found = (recorded.model_folder / "requirements.txt").read_text().split()
    assert set(found) >= {f"{name}=={version(name)}" for name in ("tensorflow", "keras", "numpy", "mlflow")}
    assert all("==" in line for line in found)


def test_logging_a_model_reads_no_list_of_installed_files(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []

    def look() -> dict[str, list[str]]:
        looks.append("at every file")
        return {}

    monkeypatch.setattr(requirements_utils, "_MODULES_TO_PACKAGES", None)
    monkeypatch.setattr("importlib_metadata.packages_distributions", look)
    experiment_id = recorded.client.get_run(recorded.run_id).info.experiment_id

    record_model(recorded.client, recorded.client.create_run(experiment_id).info.run_id, recorded.model, PARAMS)

    assert looks == []
    assert requirements_utils._MODULES_TO_PACKAGES is None


@pytest.mark.usefixtures("default_store")
@pytest.mark.parametrize("number", [int, float])
def test_a_server_answers_pixels_sent_as_json_integers_or_floats(
    recorded: Recorded, digits: Dataset, number: type[int] | type[float]
) -> None:
    model = mlflow.pyfunc.load_model(recorded.logged.uri)
    schema = model.metadata.get_input_schema()
    assert str(schema.inputs[0].type) == "float32"
    assert schema.inputs[0].shape == (-1, 28, 28, 1)

    pixels = digits.validation.images[:3]
    body = json.dumps({"inputs": pixels.astype(number).tolist()})
    answer = invocations(body, "application/json", model, schema)

    assert answer.status == 200
    found = json.loads(answer.response)["predictions"]
    np.testing.assert_allclose(found, recorded.evaluation.probabilities[:3], atol=1e-5)


def test_the_model_is_listed_with_its_run_and_its_parameters(recorded: Recorded) -> None:
    found = recorded.client.get_logged_model(recorded.model_id)
    assert found.source_run_id == recorded.run_id
    assert str(found.status) == "READY"
    assert found.params["filters_1"] == "4"
    outputs = recorded.client.get_run(recorded.run_id).outputs
    assert outputs is not None
    assert [output.model_id for output in outputs.model_outputs] == [recorded.model_id]
