"""The promises of search spaces: what loads means what it says, what does not is refused in one message."""

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fashion_study.config import StudyConfig
from fashion_study.errors import BadInputError
from fashion_study.space.file import MAX_BYTES, load_space
from fashion_study.space.space import Categorical, Float, SearchSpace
from fashion_study.trial import Hyperparameters

OWN = ["baseline", "smoke", "wide"]


def plain_space() -> dict[str, Any]:
    return {
        "name": "mine",
        "purpose": "A test.",
        "baseline": {"filters_1": 8, "learning_rate": 1e-3, "batch_size": 64},
        "parameters": {
            "filters_1": {"type": "int", "low": 4, "high": 16, "step": 4, "why": "Small."},
            "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True, "why": "Usual."},
            "batch_size": {"type": "categorical", "choices": [32, 64], "why": "Usual."},
        },
        "fixed": {
            "filters_2": 8,
            "filters_3": 8,
            "dense_units": 16,
            "decay": 0.0,
            "optimizer": "adam",
            "input_scale": "unit",
            "epochs": 3,
        },
    }


def write(folder: Path, content: object) -> str:
    path = folder / "mine.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    path.write_text(text, encoding="utf-8")
    return str(path)


def changed(place: str, value: object) -> dict[str, Any]:
    space = plain_space()
    *parents, last = place.split("/")
    target = space
    for parent in parents:
        target = target[parent]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return space


def refusal(folder: Path, content: object) -> str:
    path = write(folder, content)
    with pytest.raises(BadInputError) as caught:
        load_space(path)
    assert path in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", OWN)
def test_each_own_space_loads_by_its_name_from_any_directory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    space = load_space(name)

    assert space.name == name
    assert space.source_text.startswith(f"name: {name}")
    assert set(space.grid) == set(space.parameters)


def test_the_baseline_space_is_the_one_that_was_agreed() -> None:
    space = load_space("baseline")
    ranges = {
        name: (parameter.low, parameter.high, parameter.step, parameter.log)
        for name, parameter in space.parameters.items()
        if not isinstance(parameter, Categorical)
    }

    assert ranges == {
        "filters_1": (16, 64, 8, False),
        "filters_2": (32, 128, 8, False),
        "filters_3": (32, 128, 8, False),
        "learning_rate": (3e-5, 1e-2, None, True),
        "decay": (1e-6, 1e-2, None, True),
        "epochs": (5, 20, 1, False),
    }
    assert space.grid["batch_size"] == (32, 64, 128, 256, 512, 1024)
    assert space.max_epochs == 20
    assert space.baseline_point == Hyperparameters(), "trial 0 is no longer the blog post's model"


def test_a_misspelt_name_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(BadInputError, match=r"'basline' \(did you mean baseline\?\).*Available: baseline, smoke"):
        load_space("basline")


def test_a_space_loads_without_the_slow_libraries() -> None:
    code = (
        "import sys; from fashion_study.space.file import load_space; load_space('smoke'); "
        "print(sorted({'tensorflow', 'mlflow', 'optuna', 'numpy', 'sklearn'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert shown.stdout.strip() == "[]"


def test_numbers_are_read_as_yaml_1_2_reads_them(tmp_path: Path) -> None:
    text = yaml.safe_dump(plain_space()).replace("low: 0.0001", "low: 1e-4").replace("decay: 0.0", "decay: 1E-6")

    space = load_space(write(tmp_path, text))

    assert space.parameters["learning_rate"].contains(1e-4)
    assert space.baseline_point.decay == 1e-6


def test_moving_the_last_fixed_line_leaves_a_legal_space(tmp_path: Path) -> None:
    content = plain_space()
    for name, value in content["fixed"].items():
        content["parameters"][name] = {"type": "categorical", "choices": [value], "why": "One."}
    content["baseline"] |= content["fixed"]
    text = yaml.safe_dump(content | {"fixed": None})

    assert load_space(write(tmp_path, text)).baseline_point == SearchSpace(**plain_space()).baseline_point


def test_a_hyperparameter_that_a_space_lacks_has_its_default(tmp_path: Path) -> None:
    content = plain_space()
    del content["fixed"]

    space = load_space(write(tmp_path, content))

    assert space.baseline_point == Hyperparameters.model_validate(space.baseline)
    assert space.max_epochs == Hyperparameters().epochs
    with pytest.raises(BadInputError, match="epochs is fixed at 10 in space 'mine'; to search it, give it a range"):
        space.complete({"epochs": 5})


def test_points_are_tried_after_the_baseline_and_are_no_part_of_the_digest(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, plain_space() | {"points": [{"filters_1": 16}]}))

    _, points = StudyConfig(space=str(tmp_path / "mine.yaml"), try_points=({"batch_size": 32},)).check()

    assert points == (space.baseline | {"filters_1": 16}, space.baseline | {"batch_size": 32})
    assert space.digest == SearchSpace(**plain_space()).digest


WRONG: list[tuple[str, object, list[str]]] = [
    ("points", [{"filters_1": 16}, {"filters_1": 5}], ["points, number 2: filters_1: found 5", "in steps of 4"]),
    ("points", [{"epochs": 5}], ["points, number 1: epochs is fixed at 3"]),
    ("points", {"filters_1": 16}, ["points", "valid tuple"]),
    ("parameters/filters_1/low", "four", ["parameters.filters_1.low", "found 'four'", "a valid integer"]),
    ("parameters/filters_1/low", True, ["parameters.filters_1.low", "found True", "a valid integer"]),
    ("parameters/filters_1/low", 4.0, ["parameters.filters_1.low", "found 4.0", "a valid integer"]),
    (
        "parameters/filters_1/low",
        20,
        ["parameters.filters_1", "low 20 above high 16", "low at or below high"],
    ),
    ("parameters/filters_1/low", 0, ["parameters.filters_1", "found 0", "greater than or equal to 1"]),
    ("parameters/filters_1/high", 4096, ["parameters.filters_1", "found 4096", "less than or equal to 512"]),
    ("parameters/filters_1/high", 15, ["parameters.filters_1", "found high 15", "low plus a whole number"]),
    ("parameters/filters_1/step", 0, ["parameters.filters_1.step", "found 0", "greater than or equal to 1"]),
    ("parameters/filters_1/log", True, ["parameters.filters_1", "log with step 4", "not both"]),
    (
        "parameters/filters_1/grid",
        [4, 6],
        ["parameters.filters_1", "grid value 6", "from 4 to 16 in steps of 4"],
    ),
    ("parameters/filters_1/grid", [], ["parameters.filters_1.grid", "found []", "at least 1 item"]),
    ("parameters/filters_1/grid", [4, 4], ["parameters.filters_1", "twice in grid", "each once"]),
    ("parameters/filters_1/hihg", 9, ["parameters.filters_1.hihg", "unknown name", "low, high, step"]),
    ("parameters/filters_1/why", ..., ["parameters.filters_1.why", "missing"]),
    ("parameters/filters_1/type", "integer", ["parameters.filters_1", "'integer'", "`type: int`"]),
    ("parameters/filters_1/type", ..., ["parameters.filters_1", "`type: int`"]),
    ("parameters/filters_1", 7, ["parameters.filters_1", "found 7"]),
    ("parameters/learning_rate/low", 0.0, ["parameters.learning_rate", "log with low 0.0", "low above 0"]),
    ("parameters/learning_rate/low", -1, ["parameters.learning_rate", "log with low -1", "low above 0"]),
    (
        "parameters/learning_rate/high",
        float("inf"),
        ["parameters.learning_rate.high", "'.inf'", "valid number"],
    ),
    (
        "parameters/learning_rate/high",
        float("nan"),
        ["parameters.learning_rate.high", "'.nan'", "valid number"],
    ),
    (
        "parameters/learning_rate/high",
        11,
        ["parameters.learning_rate", "found 11.0", "less than or equal to 10"],
    ),
    ("parameters/batch_size/choices", [], ["parameters.batch_size.choices", "found []", "at least 1 item"]),
    (
        "parameters/batch_size/choices",
        [64, True],
        ["parameters.batch_size.choices.1", "found True", "a whole number"],
    ),
    ("parameters/batch_size/choices", [64, "x"], ["parameters.batch_size", "found 'x'", "a valid integer"]),
    ("parameters/batch_size/choices", [64, 64], ["parameters.batch_size", "twice in choices", "each once"]),
    (
        "parameters/batch_size/choices",
        list(range(64, 1100)),
        ["parameters.batch_size.choices", "at most 1000"],
    ),
    (
        "parameters/velocity",
        {"type": "int", "low": 1, "high": 2, "why": "?"},
        ["parameters.velocity", "filters_1,"],
    ),
    (
        "parameters/epochs",
        {"type": "int", "low": 1, "high": 2, "why": "?"},
        ["epochs", "under `fixed`", "one of"],
    ),
    ("fixed/epochs", 0, ["fixed.epochs", "found 0", "greater than or equal to 1"]),
    ("fixed/epochs", None, ["fixed.epochs", "found None", "a whole number"]),
    ("fixed/optimizer", "lion", ["fixed.optimizer", "found 'lion'", "'rmsprop', 'adam' or 'sgd'"]),
    ("fixed/optimiser", "sgd", ["fixed.optimiser", "unknown parameter (did you mean optimizer?)"]),
    ("baseline/filters_1", 6, ["baseline.filters_1", "found 6", "from 4 to 16 in steps of 4"]),
    ("baseline/filters_1", 8.0, ["baseline.filters_1", "found 8.0", "a whole number"]),
    ("baseline/learning_rate", 1, ["baseline.learning_rate", "found 1", "from 0.0001 to 0.01"]),
    ("baseline/batch_size", 128, ["baseline.batch_size", "found 128", "one of 32, 64"]),
    ("baseline/batch_size", ..., ["baseline.batch_size", "missing", "one of 32, 64"]),
    ("baseline/epochs", 3, ["baseline.epochs", "not searched", "batch_size, filters_1, learning_rate"]),
    ("parameters", {}, ["parameters", "found {}", "at least 1"]),
    ("parameters", [1], ["parameters", "found [1]", "dictionary"]),
    ("name", "No Good", ["name", "found 'No Good'", "[a-z]"]),
    ("name", "x" * 65, ["name", "[a-z]"]),
    ("purpose", ..., ["purpose", "missing"]),
    ("source_text", "forged", ["source_text", "unknown name", "name, purpose, baseline, parameters, fixed, points"]),
]


@pytest.mark.parametrize(("place", "value", "said"), WRONG)
def test_a_refusal_names_file_parameter_found_and_allowed(
    place: str, value: object, said: list[str], tmp_path: Path
) -> None:
    message = refusal(tmp_path, changed(place, value))

    assert [part for part in said if part not in message] == [], message


def test_all_that_is_wrong_with_a_space_is_said_at_once(tmp_path: Path) -> None:
    content = changed("baseline/filters_1", 6) | {"fixed": {**plain_space()["fixed"], "epochs": 0}}

    message = refusal(tmp_path, content)

    assert "baseline.filters_1" in message
    assert "fixed.epochs" in message


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (
            "parameters/learning_rate/low",
            "1e-4",
            "found '1e-4', a text (a number has no quotes, commas or underscores)",
        ),
        ("parameters/filters_1/high", "1_6", "found '1_6', a text (a number has no quotes"),
        ("baseline/filters_1", "8", "found '8', a text (a number has no quotes"),
        ("fixed/decay", "0,1", "found '0,1', a text (a number has no quotes"),
        ("parameters/learning_rate/log", "yes", "learning_rate.log: found 'yes', a text; allowed: true or false"),
        ("parameters/learning_rate/log", "true", "learning_rate.log: found 'true', a text; allowed: true or false"),
        ("parameters/learning_rate/log", 1, "learning_rate.log: found 1; allowed: true or false"),
    ],
)
def test_a_text_in_place_of_a_number_is_called_a_text(place: str, value: object, said: str, tmp_path: Path) -> None:
    # JSON is YAML in which every text has quotes.
    assert said in refusal(tmp_path, json.dumps(changed(place, value)))


def test_faults_of_every_check_are_told_together(tmp_path: Path) -> None:
    content = changed("parameters/learning_rate", {"type": "float", "low": "1e-4", "high": 1e-2, "why": "?"})
    content["parameters"]["filters_1"] |= {"step": 3, "log": True, "grid": [4, 4]}
    content["parameters"]["optimiser"] = {"type": "int", "low": 1, "high": 2, "why": "?"}
    content["baseline"]["batch_size"] = 9
    content["fixed"] |= {"epochs": 0, "decay": None}
    del content["purpose"]

    lines = refusal(tmp_path, json.dumps(content)[:-1] + ', "name": "twice"}').splitlines()

    expected = [
        "name: found twice",
        "purpose: missing",
        "parameters.filters_1: found log with step 3",
        "parameters.filters_1: found a value twice in grid",
        "parameters.learning_rate.low: found '1e-4'",
        "fixed.decay: found None",
        "parameters.optimiser: unknown parameter",
        "fixed.epochs: found 0",
        "baseline.batch_size: found 9",
        "baseline.optimiser: missing",
    ]
    assert [sum(said in line for line in lines) for said in expected] == [1] * len(expected), lines
    assert len(lines) == len(expected)


def test_every_fault_of_a_point_is_told() -> None:
    with pytest.raises(BadInputError, match=r"(?s)filters_1: found '8'.*epochs is fixed.*unknown parameter 'velocity'"):
        SearchSpace(**plain_space()).complete({"filters_1": "8", "epochs": 5, "velocity": 0.9})


OTHERS = {
    "a sweep of Weights & Biases": "program: train.py\nmethod: bayes\nparameters:\n  lr: {min: 0.001, max: 0.1}\n",
    "an experiment of Katib": "apiVersion: kubeflow.org/v1beta1\nkind: Experiment\nspec: " + "{a: " * 9 + "1" + "}" * 9,
    "a configuration of Hydra": "defaults:\n  - override hydra/sweeper: optuna\nlr: 0.1\n",
    "a search space of Ray Tune": "lr:\n  grid_search: [0.1, 0.01]\n",
    "a study of Optuna": "def objective(trial):\n    lr = trial.suggest_float('lr', 1e-5, 1e-1, log=True)\n",
    "a search space of KerasTuner": '{"space": [{"class_name": "Float", "config": {"name": "lr"}}]}',
    "a search space of Hyperopt": "space = {'lr': hp.loguniform('lr', -5, 0)}\n",
    "a search space of NNI": '{"lr": {"_type": "loguniform", "_value": [0.0001, 0.1]}}',
    "an experiment of Determined": "hyperparameters:\n  lr: {type: log, minval: -5, maxval: 0}\n",
    "a tuning job of SageMaker": '{"ParameterRanges": {"ContinuousParameterRanges": []}}',
    "a study of Vizier": "studySpec:\n  metrics: []\n",
    "an experiment of Ax or SigOpt": "parameters:\n- {name: lr, type: double, bounds: {min: 0, max: 1}}\n",
    "found unknown names only ('lr', 'momentum')": "lr: [0.1, 0.01]\nmomentum: 0.9\n",
}


@pytest.mark.parametrize("tool", OTHERS)
def test_another_tool_s_file_is_named_and_a_space_shown(tool: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, OTHERS[tool])

    assert f"{tool}; allowed: a search space of this project." in said
    assert "missing" not in said
    example = said[said.index("  name: mine") :]
    assert load_space(write(tmp_path, textwrap.dedent(example))).baseline_point == Hyperparameters(learning_rate=1e-3)


def test_a_file_without_a_yaml_suffix_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sweep.json").write_text(OTHERS["a search space of NNI"])

    with pytest.raises(BadInputError, match="found a search space of NNI"):
        load_space("sweep.json")
    with pytest.raises(BadInputError, match=r"allowed: the path of a YAML file, or a name: baseline, smoke"):
        load_space("smoke.yaml")


HOSTILE = {
    "an alias bomb": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "anchor or alias (a) in line 1"),
    "a python object": ("name: !!python/object/apply:os.system ['true']\n", "found a tag"),
    "a tag": ("name: !!str mine\n", "found a tag"),
    "a merge key": ("<<: {name: mine}\n", "unknown name"),
    "deep nesting": ("[" * 5_000, "more than 8 levels"),
    "the same key twice": (yaml.safe_dump(plain_space()) + "name: other\n", "name: found twice in line"),
    "the same bound twice": (
        "parameters:\n  epochs:\n    low: 1\n    low: 2\n",
        "parameters.epochs.low: found twice",
    ),
    "a key that is no text": ("1: 2\n", "found 1 as a name in line 1"),
    "a key that is a list": ("? [a, b]\n: 1\n", "found ['a', 'b'] as a name"),
    "an escape sequence": ('name: "\\e[2J"\n', "name: found the invisible character U+001B"),
    "a bidirectional mark": ("# \u202edaol\nname: mine\n", "invisible character U+202E"),
    "a lone surrogate": ('name: "\\ud800"\n', "invisible character U+D800"),
    "an impossible escape": ('name: "\\Uffffffff"\n', "found invalid YAML"),
    "an impossible version": ("%YAML 1." + "9" * 5_000 + "\n---\nname: mine\n", "found invalid YAML"),
    "two documents": ("name: mine\n---\nname: other\n", "found invalid YAML"),
    "a broken line": ("name: [mine\n", "found invalid YAML in line 2"),
    "a huge number": ("name: " + "9" * 6_000 + "\n", "name: found inf"),
    "a list": ("- name\n", "found ['name']"),
    "nothing": ("", "found None"),
    "too much": ("# " + "x" * MAX_BYTES, f"more than {MAX_BYTES} bytes"),
}


@pytest.mark.parametrize(("text", "said"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused(text: str, said: str, tmp_path: Path) -> None:
    assert said in refusal(tmp_path, text)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("name: Größe\n".encode("latin-1"))

    with pytest.raises(BadInputError, match=re.escape(str(path)) + ".*not UTF-8 at offset 8"):
        load_space(str(path))


@pytest.mark.parametrize("place", ["missing.yaml", ".", "nul\0.yaml", "x" * 5_000 + ".yaml"])
def test_a_path_without_a_readable_file_is_refused(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(BadInputError, match=r"allowed|Available"):
        load_space(place)


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)

    with pytest.raises(BadInputError, match="no regular file"):
        load_space(str(pipe))


def load_or_refuse(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), text)
        try:
            space = load_space(path)
        except BadInputError as error:
            assert path in str(error)  # noqa: PT017 - both ends are legal
        else:
            assert isinstance(space.baseline_point, Hyperparameters)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCALARS, inner, max_size=4),
    max_leaves=8,
)
PLACES = sorted({place for place, _, _ in WRONG})


@settings(max_examples=120)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60) | st.text("[]{}:-!&*?|>%#'\"\\ \n1.eax", max_size=40))
def test_any_text_loads_or_is_refused(text: str) -> None:
    load_or_refuse(text)


@settings(max_examples=150)
@given(place=st.sampled_from(PLACES), value=ANYTHING)
def test_a_space_with_anything_in_any_place_loads_or_is_refused(place: str, value: object) -> None:
    space = plain_space()
    *parents, last = place.split("/")
    target = space
    for parent in parents:
        target = target[parent] if isinstance(target.get(parent), dict) else target
    target[last] = value
    load_or_refuse(yaml.safe_dump(space, allow_unicode=True))


def test_the_digest_ignores_reasons_and_follows_meaning() -> None:
    space = SearchSpace(**plain_space())
    same = [
        changed("purpose", "Another."),
        changed("parameters/filters_1/why", "Other."),
        changed("name", "other"),
    ]
    other = [
        changed("baseline/filters_1", 4),
        changed("parameters/filters_1/high", 20),
        changed("parameters/batch_size/choices", [64, 32]),
        changed("fixed/epochs", 4),
    ]

    assert {SearchSpace(**content).digest for content in same} == {space.digest}
    assert len({space.digest, *(SearchSpace(**content).digest for content in other)}) == 5
    assert re.fullmatch("[0-9a-f]{64}", space.digest)


def test_comments_and_spacing_are_no_part_of_a_space(tmp_path: Path) -> None:
    commented = load_space(write(tmp_path, "# A comment.\n" + yaml.safe_dump(plain_space())))

    assert commented == SearchSpace(**plain_space())
    assert commented.source_text.startswith("# A comment.\n")
    assert commented != SearchSpace(**changed("fixed/epochs", 4))


def test_searched_and_fixed_values_make_one_point() -> None:
    space = SearchSpace(**plain_space())

    point = space.hyperparameters({"filters_1": 4, "learning_rate": 2e-3, "batch_size": 32})

    assert (point.filters_1, point.learning_rate, point.batch_size) == (4, 2e-3, 32)
    assert (point.epochs, point.optimizer) == (3, "adam")


@pytest.mark.parametrize(
    "values",
    [
        {"filters_1": 4},
        {"filters_1": 4, "learning_rate": 2e-3, "batch_size": 32, "epochs": 9},
        {"filters_1": 0, "learning_rate": 2e-3, "batch_size": 32},
    ],
    ids=["too few", "one that is fixed", "impossible"],
)
def test_a_point_that_does_not_fit_the_space_is_refused(values: dict[str, int | float | str]) -> None:
    with pytest.raises(BadInputError, match="allowed"):
        SearchSpace(**plain_space()).hyperparameters(values)


def test_a_partial_point_is_filled_from_the_baseline() -> None:
    completed = SearchSpace(**plain_space()).complete({"learning_rate": 0.002})

    assert completed == {"filters_1": 8, "learning_rate": 0.002, "batch_size": 64}


def nested(depth: int) -> Any:
    """Nest lists deeper than Python can follow."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("partial", "said"),
    [
        ({"learning_rate": 0.5}, "learning_rate: found 0.5; allowed: a number from 0.0001 to 0.01"),
        ({"learning_rate": float("nan")}, "learning_rate: found nan; allowed"),
        ({"learning_rate": "fast"}, "learning_rate: found 'fast'; allowed"),
        ({"filters_1": 8.0}, "filters_1: found 8.0; allowed: a whole number from 4 to 16 in steps of 4"),
        ({"filters_1": True}, "filters_1: found True; allowed"),
        ({"batch_size": 48}, "batch_size: found 48; allowed: one of 32, 64"),
        ({"learnin_rate": 0.002}, "(did you mean learning_rate?); allowed: 'filters_1'"),
        ({"epochs": 5}, "epochs is fixed at 3"),
        ({"filters_1": 10**5_000}, "filters_1: found <int too large to show>; allowed"),
        ({"filters_1": nested(100_000)}, "filters_1: found <list too large to show>; allowed"),
    ],
)
def test_a_partial_point_outside_the_space_is_refused(partial: dict[str, int | float | str], said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        SearchSpace(**plain_space()).complete(partial)

    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("epochs", "most"),
    [
        ({"type": "int", "low": 1, "high": 7, "why": "?"}, 7),
        ({"type": "categorical", "choices": [2, 9, 3], "why": "?"}, 9),
    ],
    ids=["a range", "choices"],
)
def test_the_most_epochs_are_the_upper_bound(epochs: dict[str, object], most: int) -> None:
    content = plain_space()
    del content["fixed"]["epochs"]
    content["parameters"]["epochs"] = epochs
    content["baseline"]["epochs"] = 3

    assert SearchSpace(**content).max_epochs == most
    assert SearchSpace(**plain_space()).max_epochs == 3


def test_a_grid_has_listed_values_or_a_small_integer_range() -> None:
    integer = {"type": "int", "low": 4, "why": "?"}
    number = {"type": "float", "low": 1e-3, "high": 1.0, "grid": [1e-3, 0.5], "why": "?"}
    small = changed("parameters/learning_rate", number)
    listed = changed("parameters/filters_1", integer | {"high": 99, "grid": [5, 7]})
    listed["parameters"]["learning_rate"] = number

    assert SearchSpace(**small).grid == {
        "filters_1": (4, 8, 12, 16),
        "learning_rate": (1e-3, 0.5),
        "batch_size": (32, 64),
    }
    assert SearchSpace(**listed).grid["filters_1"] == (5, 7)


def test_one_value_and_few_steps_are_a_grid_of_their_own() -> None:
    one = changed("parameters/learning_rate", {"type": "float", "low": 1e-3, "high": 1e-3, "why": "?"})
    steps = changed("parameters/learning_rate", {"type": "float", "low": 1e-3, "high": 5e-3, "step": 1e-3, "why": "?"})
    many = changed("parameters/learning_rate", {"type": "float", "low": 1e-3, "high": 1, "step": 1e-3, "why": "?"})

    assert SearchSpace(**one).grid["learning_rate"] == (1e-3,)
    assert SearchSpace(**steps).grid["learning_rate"] == (1e-3, 2e-3, 3e-3, 4e-3, 5e-3)
    with pytest.raises(BadInputError, match=r"learning_rate: found 1000 numbers; at most 16"):
        _ = SearchSpace(**many).grid


def test_a_parameter_without_grid_values_is_named() -> None:
    with pytest.raises(BadInputError, match=r"learning_rate: .*allowed in a grid search"):
        _ = SearchSpace(**plain_space()).grid
    with pytest.raises(BadInputError, match=r"filters_1: .*97 whole numbers"):
        _ = SearchSpace(**changed("parameters/filters_1", {"type": "int", "low": 4, "high": 100, "why": "?"})).grid


def test_steps_of_a_float_hold_to_within_rounding() -> None:
    parameter = Float(low=0.1, high=0.7, step=0.1, why="?")

    assert parameter.contains(0.1 + 0.2)
    assert not parameter.contains(0.25)
    assert not parameter.contains(0.8)
