"""The shared builder in KerasTuner's own tuners: the documented example runs, and every parameter arrives."""

import math
import re
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import pytest

import experiments
from fashion_study.data.dataset import Dataset
from fashion_study.errors import BadInputError
from fashion_study.space.file import load_space
from fashion_study.space.space import SearchSpace
from fashion_study.training.hypermodel import FashionHyperModel
from fashion_study.trial import Hyperparameters

# KerasTuner takes its lock with calls that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:(currentThread|getName)\\(\\) is deprecated:DeprecationWarning")

PAGE = Path(experiments.__file__).parents[1] / "docs/keras-tuner.md"


@pytest.mark.slow
def test_the_example_of_the_page_finds_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)

    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, str(PAGE), "exec"), names)

    space, tuner = load_space("smoke"), names["tuner"]
    assert len(tuner.oracle.trials) == 3
    for trial in tuner.oracle.trials.values():
        point = trial.hyperparameters.values
        assert {name: value for name, value in point.items() if not space.parameters[name].contains(value)} == {}
    best = tuner.get_best_hyperparameters()[0].values
    assert str(best) in capsys.readouterr().out
    assert names["model"].count_params() == FashionHyperModel(space).build(_values(best)).count_params()


def test_batch_size_and_epochs_are_the_point_s_unless_passed(digits: Dataset) -> None:
    space = load_space("baseline")
    hypermodel = FashionHyperModel(space)
    point = _values(space.baseline | {"epochs": 5, "batch_size": 1024, "filters_1": 16, "filters_2": 32})
    seen: list[tuple[int, int]] = []

    class Look(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
            seen.append((self.params["epochs"], self.params["steps"]))
            self.model.stop_training = True

    images, labels = digits.train.images, digits.train.labels
    for passed in ({}, {"epochs": 1, "batch_size": 128}):
        hypermodel.fit(point, hypermodel.build(point), images, labels, callbacks=[Look()], verbose=0, **passed)

    assert seen == [(5, math.ceil(len(labels) / 1024)), (1, math.ceil(len(labels) / 128))]


def test_without_a_choice_a_tuner_starts_from_the_baseline() -> None:
    hyperparameters = keras_tuner.HyperParameters()

    model = FashionHyperModel(load_space("baseline")).build(hyperparameters)

    assert hyperparameters.values == load_space("baseline").baseline
    assert model.count_params() == 93_322


@pytest.mark.parametrize(("name", "value"), [("averaging", 0.9), ("flip", "random"), ("views", "mirror")])
def test_what_only_a_study_s_training_does_is_refused(name: str, value: object) -> None:
    content = load_space("smoke").model_dump()
    FashionHyperModel(SearchSpace(**content | {"fixed": content["fixed"] | {name: getattr(Hyperparameters(), name)}}))
    with pytest.raises(BadInputError, match=f"Space 'smoke' has '{name}'"):
        FashionHyperModel(SearchSpace(**content | {"fixed": content["fixed"] | {name: value}}))


def test_a_schedule_over_the_whole_training_is_told_the_images() -> None:
    content = load_space("smoke").model_dump()
    space = SearchSpace(**content | {"fixed": content["fixed"] | {"schedule": "cosine"}})
    model = FashionHyperModel(space, images=640).build(keras_tuner.HyperParameters())
    assert float(model.optimizer._learning_rate(10)) == pytest.approx(space.baseline_point.learning_rate / 2)


def _values(point: dict[str, Any]) -> keras_tuner.HyperParameters:
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.values = dict(point)
    return hyperparameters
