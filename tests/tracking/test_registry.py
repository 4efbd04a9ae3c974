"""The promises of the registry: a version once per run, aliases by name, files only as they were registered."""

import re
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import LoggedModelStatus

from fashion_study.errors import DamagedModelError
from fashion_study.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    MODEL_FILE,
    PREVIOUS_CHAMPION,
    ModelRef,
    Registry,
    Version,
    registered_name,
)
from fashion_study.trial import Hyperparameters
from tests.support.model_store import SMALL, ModelStore, trained


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    return ModelStore(tmp_path_factory.mktemp("registry") / "store")


@pytest.fixture
def run_id(models: ModelStore) -> str:
    return models.trial(models.study("digits-tiny"), 1, trained(0))


@pytest.fixture
def dataset(request: pytest.FixtureRequest) -> str:
    """Name a registered model of the test's own."""
    return re.sub(r"[^a-z]+", "-", str(request.node.name))


def register(models: ModelStore, run_id: str, dataset: str, **tags: str) -> Version:
    return models.registry.register(dataset, models.client.get_run(run_id), tags)


def test_a_run_gets_one_version_however_often_it_is_registered(models: ModelStore, run_id: str, dataset: str) -> None:
    first, second = (register(models, run_id, dataset, study="s") for _ in range(2))
    assert (first.number, second.number) == (1, 1)
    assert first.name == registered_name(dataset)
    assert first.study == "s"
    assert first.sha256 == models.client.get_run(run_id).data.tags["model_sha256"]
    assert [version.number for version in models.registry.model(first.name).versions] == [1]


def test_a_model_whose_run_is_gone_has_its_parameters_itself(models: ModelStore, run_id: str) -> None:
    model = ModelRef.of_run(models.client.get_run(run_id))

    def load(path: Path, params: Hyperparameters | None) -> Hyperparameters | None:  # noqa: ARG001
        return params

    assert models.registry.load(model, load) == SMALL
    assert models.registry.load(replace(model, run_id="0" * 32), load) == SMALL


def test_a_renamed_model_is_found_and_registered_to(models: ModelStore, run_id: str, dataset: str) -> None:
    first = register(models, run_id, dataset)
    models.registry.tag(first, {"dataset": dataset})
    models.client.rename_registered_model(first.name, f"my-{dataset}")

    second = register(models, models.trial(models.study("again"), 2, trained(0)), dataset)

    assert [version.number for version in models.registry.of_dataset(dataset).versions] == [1, 2]
    assert second.name == f"my-{dataset}"


def test_a_missing_tag_is_not_taken_for_an_altered_file(models: ModelStore, run_id: str, dataset: str) -> None:
    version = register(models, run_id, dataset)
    models.client.delete_model_version_tag(version.name, "1", "model_sha256")
    (found,) = models.registry.model(version.name).versions

    with pytest.raises(DamagedModelError, match="has no tag model_sha256"):
        models.registry.fetch(found, Path())


def test_versions_are_numbered_and_listed_with_their_aliases(models: ModelStore, run_id: str, dataset: str) -> None:
    other = models.trial(models.study("another"), 2, trained(0))
    one, two = (register(models, run, dataset, data_digest="d") for run in (run_id, other))
    models.registry.move_alias(one.name, CHALLENGER, 1)
    models.registry.move_alias(one.name, CHAMPION, 1)
    models.registry.move_alias(one.name, CHALLENGER, 2)
    found = models.registry.model(one.name).versions
    assert [(version.number, version.aliases) for version in found] == [(1, (CHAMPION,)), (2, (CHALLENGER,))]
    by_alias = models.registry.model(one.name).by_alias(CHALLENGER)
    assert by_alias is not None
    assert (by_alias.number, by_alias.run_id) == (two.number, other)
    assert models.registry.model(one.name).by_alias(PREVIOUS_CHAMPION) is None
    assert one.name in [model.name for model in models.registry.models()]


def test_a_name_without_versions_has_none(models: ModelStore) -> None:
    assert models.registry.model("nothing-cnn").versions == ()
    assert models.registry.model("nothing-cnn").by_alias(CHAMPION) is None


def test_champion_is_never_removed(models: ModelStore, run_id: str, dataset: str) -> None:
    version = register(models, run_id, dataset)
    for alias in (CHAMPION, PREVIOUS_CHAMPION):
        models.registry.move_alias(version.name, alias, version.number)
    models.registry.remove_alias(version.name, PREVIOUS_CHAMPION)
    with pytest.raises(AssertionError, match="never left unset"):
        models.registry.remove_alias(version.name, CHAMPION)
    assert models.aliases(version.name) == {CHAMPION: 1}


def test_tags_are_added_to_those_of_the_registration(models: ModelStore, run_id: str, dataset: str) -> None:
    version = register(models, run_id, dataset, study="s")
    models.registry.tag(version, {"decision": "promoted", "count": 3})
    tags = models.tags(version)
    assert (tags["study"], tags["decision"], tags["count"]) == ("s", "promoted", "3")


def test_a_model_whose_logging_was_cut_off_is_not_registered(models: ModelStore, run_id: str, dataset: str) -> None:
    logged = models.client.create_logged_model(models.experiment_id, name="model", source_run_id=run_id)
    assert logged.status is LoggedModelStatus.PENDING
    models.client.set_tag(run_id, "model_uri", f"models:/{logged.model_id}")
    with pytest.raises(DamagedModelError, match="Expected READY"):
        register(models, run_id, dataset)
    assert models.registry.model(registered_name(dataset)).versions == ()


@pytest.mark.parametrize("address", ["version", "logged model"])
def test_a_file_is_fetched_as_a_copy_from_either_address(
    address: str, models: ModelStore, run_id: str, dataset: str, tmp_path: Path
) -> None:
    version = register(models, run_id, dataset)
    stored = version if address == "version" else ModelRef.of_run(models.client.get_run(run_id))
    path = models.registry.fetch(stored, tmp_path)
    assert path.is_relative_to(tmp_path)
    assert path.read_bytes() == models.model_file(version).read_bytes()


def test_an_altered_file_is_refused(models: ModelStore, run_id: str, dataset: str, tmp_path: Path) -> None:
    version = register(models, run_id, dataset)
    models.model_file(version).write_bytes(models.model_file(version).read_bytes() + b" ")
    with pytest.raises(DamagedModelError, match="was altered since"):
        models.registry.fetch(version, tmp_path)


def test_a_missing_file_is_refused(models: ModelStore, run_id: str, dataset: str, tmp_path: Path) -> None:
    version = register(models, run_id, dataset)
    models.model_file(version).unlink()
    with pytest.raises(DamagedModelError, match=f"Expected {MODEL_FILE}"):
        models.registry.fetch(version, tmp_path)


def test_a_signature_says_raw_pixels_in_and_probabilities_out(models: ModelStore, run_id: str, dataset: str) -> None:
    version = register(models, run_id, dataset)
    expected = "Tensor('float32', (-1, 28, 28, 1)) -> Tensor('float32', (-1, 10))"
    assert models.registry.signature(version) == expected


@pytest.mark.parametrize("content", ["", "signature: [", "[]", "signature: {inputs: 3}"])
def test_an_altered_description_is_refused(content: str, models: ModelStore, run_id: str, dataset: str) -> None:
    version = register(models, run_id, dataset)
    models.card_file(version).write_text(content)
    with pytest.raises(DamagedModelError, match="Expected MLmodel"):
        models.registry.signature(version)


def test_mlflow_itself_loads_a_version_by_its_alias(
    models: ModelStore, run_id: str, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(models, run_id, dataset)
    models.registry.move_alias(version.name, CHAMPION, version.number)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", models.store.tracking_uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{version.name}@{CHAMPION}")
    assert loaded.metadata.run_id == run_id


def test_another_client_sees_the_same(models: ModelStore, run_id: str, dataset: str) -> None:
    version = register(models, run_id, dataset)
    assert Registry(models.store.client()).model(version.name).versions[0].run_id == run_id


def test_a_model_of_another_project_is_not_taken_for_ours(models: ModelStore, run_id: str, dataset: str) -> None:
    models.client.create_registered_model("theirs")
    theirs = models.client.create_model_version("theirs", "file:///nowhere", tags={"dataset": dataset})

    ours = register(models, run_id, dataset, data_digest="d")

    assert theirs.name not in [model.name for model in models.registry.models()]
    assert ours.name == registered_name(dataset)
