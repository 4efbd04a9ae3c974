"""The promises of a study's config: what does not fit is refused at once, in words that say what would."""

import inspect
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.run_study import main as run_study_command
from fashion_study.config import MAX_GRID, StudyConfig, parse_duration, parse_size
from fashion_study.errors import BadInputError, ExitCode
from fashion_study.space.file import load_space


def options_of(command: str) -> dict[str, list[str]]:
    """Read a command line of run_study back: each option with its values, none for a flag."""
    start, *words = shlex.split(command.removeprefix("python -m "))
    assert start == "experiments.run_study"
    found: dict[str, list[str]] = {}
    while words:
        values = found.setdefault(words.pop(0), [])
        if words and not words[0].startswith("--"):
            values.append(words.pop(0))
    return found


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("90", 90), ("45s", 45), ("30m", 1800), ("1h30m", 5400), ("2d", 172_800), ("1d2h3m4s", 93_784)],
        *[(" 5M ", 300), ("1.5h", 5400), ("90min", 5400), ("01:30:00", 5400), ("2 h", 7200), ("2 days", 172_800)],
        *[("1 hour 30 minutes", 5400), ("PT1H30M", 5400), ("1-12:00:00", 129_600), ("0.5", 0.5)],
    ],
)
def test_a_duration_is_read_as_written(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "0", "0s", "-5", "1,5h", "soon", "5 x", "30m1h", "9" * 30, "9" * 5000, "inf", "1h30", "1:30", "pt", "500ms"],
)
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInputError, match="1h30m"):
        parse_duration(text)


def test_a_refused_duration_is_named_by_its_option() -> None:
    with pytest.raises(BadInputError, match="--trial-timeout 'soon' is no duration"):
        parse_duration("soon", "--trial-timeout")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4G", 4 * 2**30),
        ("1.5g", 3 * 2**29),
        (" 900M ", 900 * 2**20),
        ("4 GB", 4 * 2**30),
        ("900MB", 900 * 2**20),
        ("2GiB", 2**31),
        ("1T", 2**40),
    ],
)
def test_a_size_is_read_as_written(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "0G", "-1G", "G", "4X", "4 G G", "1e9", "nan", "9" * 30, "9" * 5000, "0.0001"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInputError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize("size", [1, 1000, 2**10, 3 * 2**29, 4 * 2**30, 2**40])
def test_a_size_is_written_so_that_it_is_read_back(size: int) -> None:
    (written,) = options_of(StudyConfig(worker_memory=size).command())["--worker-memory"]
    assert parse_size(written) == size


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("trials", 0, "greater than or equal to 1"),
        ("trials", "many", "valid integer"),
        ("trials", 20.0, "valid integer"),
        ("trials", "20.0", "valid integer"),
        ("trials", True, "valid integer"),
        ("seed", 1.0, "valid integer"),
        ("finalists", False, "valid integer"),
        ("timeout", -1.0, "greater than 0"),
        ("timeout", float("nan"), "finite"),
        ("trial_timeout", 0.0, "greater than 0"),
        ("workers", 0, "greater than or equal to 1"),
        ("worker_memory", 0, "greater than 0"),
        ("keep_models", 0, "greater than or equal to 1"),
        ("executor", "dask", "'local' or 'ray'"),
        ("address", "head", "expected HOST:PORT"),
        ("address", "head:0", "expected HOST:PORT"),
        ("address", "head:65536", "expected HOST:PORT"),
        ("address", "ray://head:10001", "expected HOST:PORT"),
        ("address", "user:password@head:6379", "expected HOST:PORT"),
        ("worker_cpus", 0.0, "greater than 0"),
        ("worker_cpus", 1.5, "a share of one, or a whole number"),
        ("worker_gpus", -1.0, "greater than or equal to 0"),
        ("worker_gpus", 1.5, "a share of one, or a whole number"),
        ("worker_gpus", float("nan"), "less than or equal to 64"),
        ("sampler", "annealing", "'tpe', 'random', 'qmc', 'grid', 'hyperband' or 'bayesian'"),
        ("pruner", "axe", "'hyperband'"),
        ("dataset", "cifar", "'auto', 'fashion-mnist' or 'digits'"),
        ("precision", "float16", "'auto', 'float32' or 'bfloat16'"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**31, "less than 2147483648"),
        ("limit_train", 0, "greater than or equal to 1"),
        ("study", "", "letters"),
        ("study", "../elsewhere", "letters"),
        ("study", "-first", "letters"),
        ("study", "a" * 101, "letters"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(field: str, value: object, allowed: str) -> None:
    with pytest.raises(BadInputError) as caught:
        StudyConfig(**{field: value})
    assert f"{field} is {value!r}" in str(caught.value)
    assert allowed in str(caught.value)
    assert caught.value.exit_code is ExitCode.BAD_INPUT


def test_an_unknown_field_is_refused_by_its_name() -> None:
    with pytest.raises(BadInputError, match="trails"):
        StudyConfig(trails=3)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(BadInputError, match=r"trials is 0.*seed is -1"):
        StudyConfig(trials=0, seed=-1)


@pytest.mark.parametrize("value", [True, None, [1], {"a": 1}, float("nan")])
def test_a_point_holds_numbers_and_texts_only(value: object) -> None:
    with pytest.raises(BadInputError, match=r"try_points\.0\.filters_1"):
        StudyConfig(space="smoke", try_points=({"filters_1": value},))


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        StudyConfig().trials = 3


def test_checking_returns_the_space_and_complete_points() -> None:
    config = StudyConfig(space="smoke", try_points=({"epochs": 3},))
    smoke = load_space("smoke")
    assert config.check() == (smoke, (smoke.complete({"epochs": 3}),))
    assert config.model_copy(update={"space": "baseline", "try_points": ()}).check()[0].name == "baseline"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"space": "no-such-space"}, "no-such-space"),
        ({"try_points": ({"epochs": 99},)}, "epochs"),
        ({"try_points": ({"epoch": 2},)}, "did you mean epochs"),
        ({"try_points": ({"optimizer": "adam"},)}, "fixed"),
        ({"sampler": "hyperband"}, "none of --engine optuna. Expected one of tpe"),
        ({"engine": "keras-tuner", "sampler": "tpe"}, "none of --engine keras-tuner. Expected one of hyperband"),
        ({"engine": "keras-tuner", "pruner": "median"}, "--pruner median beside --engine keras-tuner"),
    ],
)
def test_what_does_not_fit_the_space_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        StudyConfig(**({"space": "smoke"} | fields)).check()


@pytest.mark.parametrize(
    ("fields", "sampler", "pruner"),
    [
        ({}, "tpe", "asha"),
        ({"sampler": None, "pruner": None}, "tpe", "asha"),
        ({"engine": "keras-tuner"}, "hyperband", "none"),
        ({"engine": "keras-tuner", "sampler": "random", "pruner": "none"}, "random", "none"),
    ],
)
def test_an_engine_brings_its_own_defaults(fields: dict[str, Any], sampler: str, pruner: str) -> None:
    config = StudyConfig(space="smoke", **fields)
    config.check()
    assert (config.sampler, config.pruner) == (sampler, pruner)


def smoke_file(folder: Path, **parameters: dict[str, object]) -> str:
    """Write the smoke space with parameters changed; JSON is YAML too."""
    content = load_space("smoke").model_dump(exclude_none=True)
    for name, changes in parameters.items():
        declared = content["parameters"][name] | changes
        content["parameters"][name] = {key: value for key, value in declared.items() if value is not None}
    path = folder / "space.yaml"
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", ":6379", "head:70000"])
def test_a_malformed_ray_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(BadInputError, match=rf"RAY_ADDRESS is '{address}': expected HOST:PORT"):
        StudyConfig(executor="ray").check()
    assert StudyConfig(executor="ray", address="head:6379").cluster_address() == "head:6379"


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_an_address_a_cluster_is_to_be_started(nothing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if nothing is not None:
        monkeypatch.setenv("RAY_ADDRESS", nothing)
    assert StudyConfig(executor="ray").cluster_address() is None


@pytest.mark.parametrize("field", ["address", "worker_cpus", "worker_gpus"])
def test_what_is_for_a_cluster_is_refused_without_one(field: str) -> None:
    fields: dict[str, Any] = {field: "[::1]:6379" if field == "address" else 0.5}
    with pytest.raises(BadInputError, match=f"--{field.replace('_', '-')} is for .*--executor ray"):
        StudyConfig(**fields).check()
    StudyConfig(executor="ray", **fields).check()


def test_ray_is_an_extra_that_is_asked_for_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    StudyConfig().check()
    with pytest.raises(BadInputError, match=r"pip install -e '\.\[ray\]'"):
        StudyConfig(executor="ray").check()


def test_a_grid_search_needs_values_for_every_parameter(tmp_path: Path) -> None:
    space = smoke_file(tmp_path, learning_rate={"grid": None})

    StudyConfig(space=space, sampler="tpe").check()
    with pytest.raises(BadInputError, match=r"learning_rate.*grid"):
        StudyConfig(space=space, sampler="grid").check()


def test_hyperband_needs_epochs_that_are_searched_in_a_range(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("low", "high", "step", "log", "grid"))
    space = smoke_file(tmp_path, epochs={"type": "categorical", "choices": [1, 2, 3]} | nothing)

    with pytest.raises(BadInputError, match="`epochs` under `parameters` with `type: int`"):
        StudyConfig(space=space, engine="keras-tuner").check()
    StudyConfig(space=space, engine="keras-tuner", sampler="random").check()


def test_a_grid_beyond_all_budgets_is_refused(tmp_path: Path) -> None:
    rates = [round(1e-4 + number * 9e-6, 7) for number in range(1000)]
    epochs = list(range(1, 102))
    space = smoke_file(tmp_path, learning_rate={"grid": rates}, epochs={"high": 101, "grid": epochs})

    with pytest.raises(BadInputError, match=f"202,000 points; expected at most {MAX_GRID:,}"):
        StudyConfig(space=space, sampler="grid").check()


def test_the_command_asks_for_the_same_study(tmp_path: Path) -> None:
    config = StudyConfig(
        space="smoke",
        dataset="digits",
        data_dir=tmp_path / "with space",
        trials=7,
        budget=120,
        timeout=90.5,
        trial_timeout=600.0,
        workers=3,
        worker_memory=3 * 2**30,
        epoch_budget=300,
        executor="ray",
        address="head:6379",
        worker_cpus=2.0,
        worker_gpus=0.5,
        engine="keras-tuner",
        sampler="bayesian",
        seed=5,
        study="mine",
        store=tmp_path / "store",
        study_db="postgresql://ana@host/optuna",
        precision="bfloat16",
        limit_train=500,
        finalists=2,
        repeats=4,
        keep_models=5,
        max_parameters=90_000,
        close=True,
        checkpoint_disk=500 * 2**20,
        try_points=({"epochs": 3}, {"learning_rate": 0.002}),
    )

    options = options_of(config.command())

    assert options == {
        "--space": ["smoke"],
        "--dataset": ["digits"],
        "--data-dir": [str(tmp_path / "with space")],
        "--trials": ["7"],
        "--budget": ["120s"],
        "--timeout": ["91s"],
        "--trial-timeout": ["600s"],
        "--workers": ["3"],
        "--worker-memory": ["3G"],
        "--max-parameters": ["90000"],
        "--epoch-budget": ["300"],
        "--executor": ["ray"],
        "--address": ["head:6379"],
        "--worker-cpus": ["2.0"],
        "--worker-gpus": ["0.5"],
        "--engine": ["keras-tuner"],
        "--sampler": ["bayesian"],
        "--pruner": ["none"],
        "--seed": ["5"],
        "--study": ["mine"],
        "--store": [str(tmp_path / "store")],
        "--study-db": ["postgresql://ana@host/optuna"],
        "--precision": ["bfloat16"],
        "--limit-train": ["500"],
        "--finalists": ["2"],
        "--repeats": ["4"],
        "--keep-models": ["5"],
        "--close": [],
        "--checkpoint-disk": ["500M"],
        "--try": ['{"epochs": 3}', '{"learning_rate": 0.002}'],
    }
    known = {f"--{name.replace('_', '-')}" for name in inspect.signature(run_study_command).parameters}
    assert options.keys() - {"--try"} == known - {"--try-points", "--plan-only"}


def test_the_command_leaves_out_what_is_left_at_its_default() -> None:
    assert StudyConfig().command() == "python -m experiments.run_study"


def test_the_defaults_are_those_of_the_entry_point() -> None:
    given = inspect.signature(run_study_command).parameters
    defaults = {name: parameter.default for name, parameter in given.items()}

    del defaults["plan_only"]  # The one option that is no setting of a study.

    assert defaults.keys() == StudyConfig.model_fields.keys()
    assert StudyConfig(**defaults) == StudyConfig()
