"""The promise of the catalog: a data set of any shape, colour and number of classes goes through every command."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fashion_study.config import StudyConfig
from fashion_study.data.catalog import load_dataset, load_pool, locate
from fashion_study.data.holdout import load_holdout
from fashion_study.executors import local
from fashion_study.prediction.predict import predict
from fashion_study.promotion.decision import Outcome, PromotionConfig
from fashion_study.promotion.promote import promote
from fashion_study.report.collect import collect
from fashion_study.report.publish import publish_report
from fashion_study.store.trials import TrialStorage
from fashion_study.study.run import StudyResult, run_study
from tests.support import third_kind
from tests.support.third_kind import BLOCKS, HEIGHT, HOLDOUT, POOL, TRAINING_IMAGES, WIDTH

ROOT = Path(__file__).parents[1]
# The baseline learns next to nothing, so that the point that is tried beats it.
SPACE = """
name: blocks
purpose: Tell colours apart in seconds.
baseline: {learning_rate: 1e-6}
parameters:
  learning_rate: {type: float, low: 1e-6, high: 1e-1, log: true, why: The only thing that matters here.}
fixed:
  filters_1: 8
  filters_2: 8
  filters_3: 8
  dense_units: 16
  batch_size: 8
  epochs: 4
  optimizer: adam
  input_scale: unit
  # All that is off in the blog's network goes the same way.
  convolutions_2: 2
  padding: same
  poolings: 3
  normalization: batch
  normalization_momentum: 0.8
  activation: silu
  head: average
  dropout: 0.1
  schedule: one_cycle
  warmup: 0.25
  weight_decay: 0.01
  label_smoothing: 0.1
  averaging: 0.5
  flip: alternating
  shift: 1
  erasing: 0.2
  views: mirror
"""


@dataclass(frozen=True)
class Studied:
    """A study of the third kind, and the folder it lies in."""

    root: Path
    result: StudyResult

    @property
    def store(self) -> Path:
        return self.root / "store"


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studied]:
    root = tmp_path_factory.mktemp("third")
    (root / "blocks.yaml").write_text(SPACE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        third_kind.register(monkeypatch)
        monkeypatch.setattr(local, "WORKER_MODULE", third_kind.__name__)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        config = StudyConfig(
            space=str(root / "blocks.yaml"),
            dataset=BLOCKS.name,
            trials=2,
            try_points=({"learning_rate": 0.01},),
            workers=1,
            precision="float32",
            pruner="none",
            finalists=0,
            store=root / "store",
        )
        yield Studied(root, run_study(config))


def test_the_images_are_divided_like_those_of_any_kind(studied: Studied) -> None:
    data = load_dataset(studied.result.source)
    assert (len(data.train.labels), len(data.validation.labels)) == (TRAINING_IMAGES, POOL - TRAINING_IMAGES)
    assert data.train.images.shape[1:] == data.image_shape == (HEIGHT, WIDTH, 3)
    assert len(load_pool(locate(BLOCKS.name)).labels) == POOL


def test_a_study_trains_and_registers_its_model(studied: Studied) -> None:
    result = studied.result
    assert result.name == "blocks-blocks"
    assert max(record.objective or 0 for record in result.records) > 0.7
    client = result.store.client()
    assert result.best is not None
    metrics = client.get_run(str(result.best.run_id)).data.metrics
    assert metrics["objective"] == metrics["val_accuracy_views_mirror"]
    assert 0 < metrics["val_accuracy_views_none"] <= 1
    assert [version.name for version in client.search_model_versions("")] == ["blocks-cnn"]
    run = client.get_run(str(result.run_id))
    assert run.inputs is not None
    profile = json.loads(run.inputs.dataset_inputs[0].dataset.profile or "")
    assert (profile["height"], profile["width"], profile["channels"]) == (HEIGHT, WIDTH, 3)


def test_a_report_shows_its_confused_images_in_colour(studied: Studied) -> None:
    result = studied.result
    facts = collect(TrialStorage(result.store.open_optuna_storage(), result.name), result.store)
    assert facts.best is not None
    assert facts.best.classes == BLOCKS.class_names
    validation = load_dataset(result.source).validation
    assert facts.pixels
    for index, pixels in facts.pixels.items():
        assert np.array_equal(pixels, validation.images[index])

    page = publish_report(result.name, studied.store, studied.root / "page.html").path.read_text()
    number = len(facts.best.pairs[0].examples)
    assert f'width="{number * (WIDTH + 2) - 2}" height="{HEIGHT}"' in page


def test_a_promotion_reads_its_holdout_and_prediction_follows(studied: Studied, tmp_path: Path) -> None:
    decision = promote(PromotionConfig(), studied.result.store)
    assert decision.outcome is Outcome.PROMOTED, decision.sentence
    assert decision.holdout is not None
    assert decision.holdout.images == HOLDOUT
    assert [recall.name for recall in decision.recalls] == list(BLOCKS.class_names)

    holdout = load_holdout(studied.result.source)
    paths = []
    for number, image in enumerate(holdout.images[:30]):
        paths.append(tmp_path / f"{number:02d}.png")
        Image.fromarray(image).save(paths[-1])
    photograph = Image.new("RGB", (400, 300), (20, 20, 20))
    ImageDraw.Draw(photograph).rectangle((100, 80, 299, 239), fill=third_kind.CLASSES["blue block"])
    photograph.save(tmp_path / "photograph.jpg")

    found = predict([*paths, tmp_path / "photograph.jpg"], studied.result.store)

    assert found.model == "blocks-cnn version 1 (challenger, champion)"
    assert found.errors == []
    best = [one.classes[0].name for one in found.pictures]
    right = [name == BLOCKS.class_names[label] for name, label in zip(best, holdout.labels, strict=False)]
    assert np.mean(right) > 0.8
    assert best[-1] == "blue block"
