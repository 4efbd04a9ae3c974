import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fashion_study.data.catalog import describe
from fashion_study.data.dataset import ImageShape
from fashion_study.errors import BadInputError, DamagedModelError, StoreError
from fashion_study.prediction.model_uri import ModelUri
from fashion_study.prediction.predict import ClassProbability, Prediction, Predictions, as_json, predict, table
from fashion_study.tracking.registry import CHAMPION
from fashion_study.training.model import build_model, to_float32
from fashion_study.trial import Hyperparameters
from fashion_study.worker.record import record_model
from tests.support.model_store import ModelStore, digits, trained


@dataclass(frozen=True)
class Shelf:
    """A store with a good model as champion, a poor one as challenger, and a third that is not registered."""

    models: ModelStore
    loose: ModelUri


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    models = ModelStore(tmp_path_factory.mktemp("prediction") / "store")
    study = models.study("digits-small")
    good = models.register(models.trial(study, 0, trained(8)))
    models.registry.move_alias(good.name, CHAMPION, good.number)
    models.register(models.trial(study, 1, trained(1)))
    loose = models.client.get_run(models.trial(study, 2, trained(0))).data.tags["model_uri"]
    return Shelf(models, ModelUri.parse(loose))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = []
    for number, image in enumerate(digits().validation.images[:20]):
        paths.append(tmp_path / f"{number:02d}.png")
        Image.fromarray(image[..., 0]).save(paths[-1])
    return paths


def assert_predicted_by(epochs: int, found: Predictions) -> None:
    wanted = trained(epochs).predict(digits().validation.images[: len(found.pictures)], verbose=0)
    for one, row in zip(found.pictures, wanted, strict=True):
        best = np.argsort(-row, kind="stable")[:3]
        assert [each.name for each in one.classes] == [str(digit) for digit in best]
        assert [each.probability for each in one.classes] == pytest.approx(list(row[best]), abs=1e-5)


def test_the_champion_predicts_pictures_like_their_images(shelf: Shelf, pictures: list[Path]) -> None:
    found = predict(pictures, shelf.models.store)
    assert found.model == "digits-cnn version 1 (champion)"
    assert [one.picture for one in found.pictures] == pictures
    assert_predicted_by(8, found)


@pytest.mark.parametrize(
    ("address", "epochs"),
    [("models:/digits-cnn@champion", 8), ("models:/digits-cnn/1", 8), ("models:/digits-cnn@challenger", 1)],
)
def test_a_registered_model_is_chosen_by_alias_or_version(
    address: str, epochs: int, shelf: Shelf, pictures: list[Path]
) -> None:
    assert_predicted_by(epochs, predict(pictures, shelf.models.store, ModelUri.parse(address)))


def test_an_unregistered_model_is_chosen_by_its_id(shelf: Shelf, pictures: list[Path]) -> None:
    found = predict(pictures, shelf.models.store, shelf.loose)
    assert found.model == str(shelf.loose)
    assert_predicted_by(0, found)


def test_a_renamed_experiment_keeps_its_models(tmp_path: Path, pictures: list[Path]) -> None:
    models = ModelStore(tmp_path / "store")
    study = models.study("small")
    models.client.log_param(study, "dataset", "digits")
    run = models.client.get_run(models.trial(study, 0, trained(8)))
    models.client.rename_experiment(models.experiment_id, "mine")
    address = ModelUri.parse(run.data.tags["model_uri"])
    assert_predicted_by(8, predict(pictures, models.store, address))


def test_photographs_of_digits_are_taken_for_what_they_show(shelf: Shelf, tmp_path: Path) -> None:
    split = digits().validation
    paths = []
    for number, image in enumerate(split.images[:200]):
        picture = Image.new("RGB", (400, 460), (250, 252, 248))
        picture.paste(Image.fromarray(255 - image[..., 0]).resize((280, 280), Image.Resampling.BICUBIC), (60, 90))
        paths.append(tmp_path / f"{number}.jpg")
        picture.save(paths[-1], quality=90)
    found = predict(paths, shelf.models.store)
    right = [one.classes[0].name == str(label) for one, label in zip(found.pictures, split.labels[:200], strict=True)]
    assert np.mean(right) > 0.75


def test_the_champion_of_the_first_data_set_is_used(tmp_path: Path, pictures: list[Path]) -> None:
    models = ModelStore(tmp_path / "both")
    run_id = models.trial(models.study("small"), 0, trained(8))
    for dataset in ("digits", "fashion-mnist"):
        version = models.registry.register(dataset, models.client.get_run(run_id), {})
        models.registry.move_alias(version.name, CHAMPION, version.number)
    found = predict(pictures, models.store)
    assert found.model == "fashion-mnist-cnn version 1 (champion)"
    assert {each.name for one in found.pictures for each in one.classes} <= set(describe("fashion-mnist").class_names)


def test_an_unreadable_picture_does_not_stop_the_others(shelf: Shelf, pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    missing = tmp_path / "missing.png"
    found = predict([broken, *pictures[:2], missing], shelf.models.store)
    assert [bool(one.classes) for one in found.pictures] == [False, True, True, False]
    assert [one.error is None for one in found.pictures] == [False, True, True, False]
    assert [str(path) in error for path, error in zip((broken, missing), found.errors, strict=True)] == [True, True]


def test_where_no_picture_can_be_read_no_model_is_looked_for(tmp_path: Path) -> None:
    models = ModelStore(tmp_path / "store")
    found = predict([tmp_path / "missing.png"], models.store)
    assert found.model is None
    assert len(found.errors) == 1


def test_a_store_without_a_champion_says_how_to_get_one(tmp_path: Path, pictures: list[Path]) -> None:
    models = ModelStore(tmp_path / "store")
    with pytest.raises(StoreError, match=r"experiments\.promote"):
        predict(pictures, models.store)


@pytest.mark.parametrize("address", ["models:/digits-cnn/7", "models:/digits-cnn@best", "models:/other/1"])
def test_a_missing_model_is_refused_with_the_known_ones(address: str, shelf: Shelf, pictures: list[Path]) -> None:
    with pytest.raises(BadInputError) as refused:
        predict(pictures, shelf.models.store, ModelUri.parse(address))
    assert address in str(refused.value)
    for known in ("models:/digits-cnn/1", "models:/digits-cnn/2", "models:/digits-cnn@champion"):
        assert known in str(refused.value)


def test_a_logged_model_that_is_not_there_is_refused(shelf: Shelf, pictures: list[Path]) -> None:
    with pytest.raises(BadInputError, match=r"models:/m-0{32}:"):
        predict(pictures, shelf.models.store, ModelUri.parse("models:/m-" + 32 * "0"))


def test_a_run_that_says_no_digest_gives_no_model(shelf: Shelf, pictures: list[Path]) -> None:
    made = shelf.models.client.create_run(shelf.models.experiment_id)
    logged = shelf.models.client.create_logged_model(shelf.models.experiment_id, source_run_id=made.info.run_id)
    with pytest.raises(BadInputError, match="model_sha256"):
        predict(pictures, shelf.models.store, ModelUri.parse(f"models:/{logged.model_id}"))


@pytest.mark.parametrize(
    ("image_shape", "classes", "found"),
    [((28, 28, 1), 12, "12 classes apart; its data set has 10"), ((32, 32, 3), 10, r"images of \(32, 32, 3\)")],
)
def test_a_model_that_is_not_for_its_data_set_is_refused(
    image_shape: ImageShape, classes: int, found: str, shelf: Shelf, pictures: list[Path]
) -> None:
    models = shelf.models
    run_id, params = models.client.create_run(models.experiment_id).info.run_id, Hyperparameters()
    model = to_float32(build_model(params, image_shape, classes), params)
    logged = record_model(models.client, run_id, model, params)
    models.client.set_tag(run_id, "model_sha256", logged.sha256)
    with pytest.raises(DamagedModelError, match=found):
        predict(pictures, models.store, ModelUri.parse(logged.uri))


def test_an_altered_file_is_refused_however_it_is_named(tmp_path: Path, pictures: list[Path]) -> None:
    models = ModelStore(tmp_path / "store")
    run_id = models.trial(models.study("small"), 0, trained(0))
    version = models.register(run_id)
    models.registry.move_alias(version.name, CHAMPION, version.number)
    models.model_file(version).write_bytes(b"another model")
    logged = ModelUri.parse(models.client.get_run(run_id).data.tags["model_uri"])
    for address in (None, ModelUri.parse("models:/digits-cnn/1"), logged):
        with pytest.raises(DamagedModelError, match="SHA-256"):
            predict(pictures, models.store, address)


@pytest.mark.parametrize(
    "text",
    ["", "digits-cnn", "models:/", "models:/digits-cnn", "models:/m-12", "models:/a/b/1", "models:/a@b/1", "runs:/1/m"],
)
def test_what_is_no_address_of_a_model_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="models:/NAME@ALIAS"):
        ModelUri.parse(text)


def shown(found: Predictions, width: int = 120) -> Sequence[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table(found, width))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_a_table_shows_the_model_names_and_probabilities(shelf: Shelf, pictures: list[Path], tmp_path: Path) -> None:
    found = predict([pictures[0], tmp_path / "missing.png"], shelf.models.store)
    lines = shown(found)
    assert "digits-cnn version 1 (champion)" in lines[0]
    (row,) = (line for line in lines if "%" in line)
    best = found.pictures[0].classes[0]
    assert row.split()[-9:-6] == [best.name, f"{100 * best.probability:.1f}", "%"]
    assert "missing" not in "".join(lines)


@pytest.mark.parametrize("width", [60, 40])
def test_on_a_narrow_terminal_each_class_has_a_row(width: int) -> None:
    classes = tuple(map(ClassProbability, ("Ankle boot", "T-shirt/top", "Bag"), (1.0, 0.123, 0.056)))
    found = Predictions("a model", (Prediction(Path("docs/samples/a-long-name-of-a-picture.jpg"), classes),))

    lines = shown(found, width)

    shares = [" ".join(line.split()[-3:]) for line in lines if "%" in line]
    assert [share.rpartition(" ")[0].split()[-1] for share in shares] == ["100.0", "12.3", "5.6"]
    assert all(any(each.name in line for line in lines) for each in classes)


def test_a_name_that_would_move_the_cursor_is_shown_harmless() -> None:
    one = Prediction(Path("a\x1b[2J[red]b.png"), tuple(ClassProbability(name, 0.3) for name in "abc"))
    lines = "".join(shown(Predictions("a model", (one,))))
    assert "\x1b" not in lines
    assert "[2J[red]b.png" in lines


def test_json_has_an_object_for_each_picture(shelf: Shelf, pictures: list[Path], tmp_path: Path) -> None:
    missing = tmp_path / "missing.png"
    found = predict([pictures[0], missing], shelf.models.store)
    read, unread = as_json(found)
    assert read == {
        "picture": str(pictures[0]),
        "model": found.model,
        "classes": [{"name": each.name, "probability": each.probability} for each in found.pictures[0].classes],
    }
    assert unread == {"picture": str(missing), "error": found.errors[0]}
