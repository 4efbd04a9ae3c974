"""The promises of a study's fingerprint: it is continued as itself or refused with the difference."""

import json
from pathlib import Path
from typing import Any

import pytest

from fashion_study.config import StudyConfig
from fashion_study.errors import BadInputError, StoreError
from fashion_study.space.file import load_space
from fashion_study.space.space import SearchSpace
from fashion_study.study.plan import Plan, plan_study, refuse_difference
from fashion_study.trial import DataSource

SMOKE = load_space("smoke")
DIGITS = DataSource("digits", None, "d" * 64)


def fingerprint(**changes: Any) -> dict[str, str | int | None]:
    fixed = {"space": changes.pop("space", SMOKE), "source": changes.pop("source", DIGITS)}
    return Plan(StudyConfig(**changes), points=(), name="mine", workers=1, **fixed).fingerprint


def changed_space(**changes: Any) -> SearchSpace:
    content = SMOKE.model_dump()
    for path, value in changes.items():
        section, _, field = path.partition("__")
        content[section] = value if not field else content[section] | {field: value}
    return SearchSpace.model_validate(content)


def wider(**changes: object) -> SearchSpace:
    return changed_space(parameters__filters_1=SMOKE.model_dump()["parameters"]["filters_1"] | changes)


def test_the_same_study_is_continued() -> None:
    refuse_difference("mine", fingerprint(), fingerprint())


@pytest.mark.parametrize(
    "space",
    [
        changed_space(name="renamed", purpose="Said better."),
        wider(why="A better reason."),
        wider(grid=(4,)),
    ],
    ids=["name", "why", "grid"],
)
def test_words_and_grid_values_may_change(space: SearchSpace) -> None:
    refuse_difference("mine", fingerprint(), fingerprint(space=space))


def test_a_hyperparameter_newer_than_the_study_has_its_default() -> None:
    stored = fingerprint()
    values = json.loads(str(stored["baseline"]))
    del values["decay"]
    older = stored | {"baseline": json.dumps(values)}

    refuse_difference("mine", older, fingerprint())
    for altered in ("no JSON", json.dumps(values | {"decay": 2.0})):
        with pytest.raises(BadInputError, match="baseline"):
            refuse_difference("mine", stored | {"baseline": altered}, fingerprint())


def test_where_the_data_lies_may_change() -> None:
    fashion = DataSource("fashion-mnist", Path("here"), "f" * 64)
    moved = DataSource("fashion-mnist", Path("there"), "f" * 64)
    refuse_difference("mine", fingerprint(source=fashion), fingerprint(source=moved))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed: stored 0, asked for 1"),
        ({"limit_train": 500}, "limit on training images: stored None, asked for 500"),
        ({"source": DataSource("digits", None, "e" * 64)}, "data: stored digits ddd"),
        ({"source": DataSource("fashion-mnist", Path("here"), "d" * 64)}, "asked for fashion-mnist ddd"),
        ({"space": wider(high=12)}, "parameter filters_1: stored"),
        ({"space": changed_space(baseline__epochs=1)}, "baseline: stored"),
        ({"space": changed_space(fixed__optimizer="adam")}, "baseline: stored"),
    ],
)
def test_another_study_is_refused_with_the_difference(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInputError) as caught:
        refuse_difference("mine", fingerprint(), fingerprint(**changes))
    message = str(caught.value)
    assert "'mine'" in message
    assert named in message
    assert "--study" in message
    assert message.count(": stored ") == 1


def test_a_parameter_that_came_or_went_is_named() -> None:
    content = SMOKE.model_dump()
    del content["parameters"]["epochs"], content["baseline"]["epochs"]
    content["fixed"]["epochs"] = 2
    without = SearchSpace.model_validate(content)

    with pytest.raises(BadInputError, match=r"parameter epochs: stored .*, asked for nothing"):
        refuse_difference("mine", fingerprint(), fingerprint(space=without))
    with pytest.raises(BadInputError, match="parameter epochs: stored nothing, asked for"):
        refuse_difference("mine", fingerprint(space=without), fingerprint())


def test_every_difference_is_listed() -> None:
    with pytest.raises(BadInputError) as caught:
        refuse_difference("mine", fingerprint(), fingerprint(seed=1, limit_train=9))
    assert "seed" in str(caught.value)
    assert "limit on training images" in str(caught.value)


def test_a_server_that_is_not_there_is_refused_in_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9 does not answer: Connection refused"):
        plan_study(StudyConfig(space="smoke", dataset="digits", store=tmp_path / "store"))
    assert list(tmp_path.iterdir()) == []
