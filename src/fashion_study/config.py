"""The settings of a study, checked before anything is opened or imported."""

import json
import math
import os
import re
import shlex
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from fashion_study.data.catalog import AUTO, KINDS
from fashion_study.database_url import trials_database_url
from fashion_study.errors import BadInputError
from fashion_study.space.file import load_space
from fashion_study.space.space import Int, SearchSpace, Value
from fashion_study.trial import MAX_PARAMETERS, ParamValue

EngineName = Literal["optuna", "keras-tuner"]
ExecutorName = Literal["local", "ray"]
SamplerName = Literal["tpe", "random", "qmc", "grid"]
KerasTunerSampler = Literal["hyperband", "bayesian", "random", "grid"]
AnySampler = Literal["tpe", "random", "qmc", "grid", "hyperband", "bayesian"]
PrunerName = Literal["asha", "successive-halving", "hyperband", "median", "none"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]

# The first one is the engine's default.
SAMPLERS: dict[EngineName, tuple[str, ...]] = {
    "optuna": get_args(SamplerName),
    "keras-tuner": get_args(KerasTunerSampler),
}
# The engines that stop trials; of the others none has a pruner.
PRUNING_ENGINES: tuple[EngineName, ...] = ("optuna",)
MAX_GRID = 100_000
# More than anybody has; also where a budget of time decides.
MOST_TRIALS = 1_000_000
# In seconds. Workers have to start, and some models to be measured.
SHORTEST_BUDGET = 60
DURATIONS = ("budget", "timeout", "trial_timeout")
SIZES = ("worker_memory", "checkpoint_disk")
UNITS = ("", *"KMGT")
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NUMBER = r"\d+(?:\.\d+)?"
# With the `p` and `t` of ISO 8601.
DURATION = re.compile(
    rf"p?(?:(?P<days>{_NUMBER}) ?(?:d|days?))?[ t]?(?:(?P<hours>{_NUMBER}) ?(?:h|hrs?|hours?))? ?"
    rf"(?:(?P<minutes>{_NUMBER}) ?(?:m|mins?|minutes?))? ?(?:(?P<seconds>{_NUMBER}) ?(?:s|secs?|seconds?))?"
)
# With the days of Slurm.
CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d)")
ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


def whole(value: object) -> object:
    """Refuse a truth value and a number with a decimal point, also in a text, where a whole number is asked for."""
    is_whole = re.fullmatch(r"\s*[-+]?\d+\s*", value) if isinstance(value, str) else hasattr(value, "__index__")
    if not is_whole or isinstance(value, bool):
        # Without pydantic's "Value error" before it, which Typer would show.
        raise PydanticCustomError("whole", "expected a valid integer, such as 20")
    return value


Whole = Annotated[int, BeforeValidator(whole)]


def _checked_dataset(name: str) -> str:
    if name not in (AUTO, *KINDS):
        *names, last = (repr(known) for known in (AUTO, *KINDS))
        raise ValueError(f"expected {', '.join(names)} or {last}")
    return name


def _checked_study_name(name: str) -> str:
    if not STUDY_NAME.fullmatch(name):
        raise ValueError("expected up to 100 letters, digits, '.', '_' and '-', the first a letter or digit")
    return name


def _checked_address(address: str) -> str:
    match = ADDRESS.fullmatch(address)
    if not (match and 0 < int(match[1]) < 2**16):
        raise ValueError("expected HOST:PORT, as `ray start --head` shows it")
    return address


def _checked_share(amount: float) -> float:
    # Ray gives nothing else.
    if amount > 1 and not amount.is_integer():
        raise ValueError("expected a share of one, or a whole number")
    return amount


class StudyConfig(BaseModel):
    """The settings of one study; the defaults are those of `python -m experiments.run_study`.

    `trials` is a total: a study that has some trials already is continued to it. `epoch_budget` is a total too: once
    all trials together have trained for that many epochs, no further trial is started. The same holds after `timeout`
    seconds. With a `budget` of seconds the study plans how many trials fit, `trials` at most, and ends in time, with
    its finalists. `workers` defaults to one per GPU, else one per usable core, as memory allows. A trial that takes
    longer than `trial_timeout` seconds, or more than `worker_memory` bytes, fails, and one whose model has more than
    `max_parameters` weights is not trained. Where the checkpoints of paused trials take more than `checkpoint_disk`
    bytes, the lowest ranked of these trials are pruned; `close` prunes all of them at the end. `keep_models` keeps the
    model files of that many best trials and deletes the others. The best `finalists` trials are trained again up to
    `repeats` times, unless they fall too far behind; by default 3 and 3, as far as that takes no more epochs than the
    trials did. `try_points` are tried right after the baseline and the space's own points; the baseline supplies the
    parameters that a point leaves out.

    `study_db` is the URL of a PostgreSQL database for the trials, without a password; the default is `OPTUNA_STORAGE`,
    else a file in `store`. `sampler` defaults to the `engine`'s: tpe for Optuna, hyperband for KerasTuner, which has no
    pruners. With `executor` ray the workers run on the Ray cluster at `address`, or on one that is started here; each
    takes `worker_cpus` (1) and `worker_gpus` (1 where the cluster has any), and without `workers` there are as many as
    the cluster has room for.

    Raises:
        BadInputError: a field is unknown or out of its range, or `study_db` holds a password.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: str = "baseline"
    dataset: Annotated[str, AfterValidator(_checked_dataset)] = AUTO
    data_dir: Path | None = None
    trials: Annotated[Whole, Field(ge=1, le=MOST_TRIALS)] = 30
    budget: Annotated[float, Field(ge=SHORTEST_BUDGET, allow_inf_nan=False)] | None = None
    epoch_budget: Annotated[Whole, Field(ge=1)] | None = None
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    trial_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    workers: Annotated[Whole, Field(ge=1, le=1024)] | None = None
    worker_memory: Annotated[Whole, Field(gt=0)] | None = None
    max_parameters: Annotated[Whole, Field(ge=1)] = MAX_PARAMETERS
    executor: ExecutorName = "local"
    address: Annotated[str, AfterValidator(_checked_address)] | None = None
    worker_cpus: Annotated[float, Field(gt=0, le=1024), AfterValidator(_checked_share)] | None = None
    worker_gpus: Annotated[float, Field(ge=0, le=64), AfterValidator(_checked_share)] | None = None
    engine: EngineName = "optuna"
    sampler: AnySampler = "tpe"
    pruner: PrunerName = "asha"
    close: bool = False
    checkpoint_disk: Annotated[Whole, Field(gt=0)] = 2 * 2**30
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 0
    study: Annotated[str, AfterValidator(_checked_study_name)] | None = None
    store: Path = Path("mlruns")
    study_db: str | None = None
    precision: PrecisionChoice = "auto"
    limit_train: Annotated[Whole, Field(ge=1)] | None = None
    finalists: Annotated[Whole, Field(ge=0, le=100)] | None = None
    repeats: Annotated[Whole, Field(ge=1, le=100)] | None = None
    keep_models: Annotated[Whole, Field(ge=1)] | None = None
    try_points: tuple[dict[str, Value], ...] = ()

    def __init__(self, **fields: Any) -> None:
        # Here, so that no config holds a password: it is shown, and written down as a command line.
        trials_database_url(fields.get("study_db"))
        # None means the default; some defaults are the engine's own.
        given = {name: value for name, value in fields.items() if value is not None}
        engine = given.get("engine", type(self).model_fields["engine"].default)
        own: dict[str, object] = {"sampler": SAMPLERS[engine][0]} if engine in SAMPLERS else {}
        own |= {} if engine in PRUNING_ENGINES else {"pruner": "none"}
        own |= {"trials": MOST_TRIALS} if "budget" in given else {}
        try:
            super().__init__(**(own | given))
        except ValidationError as error:
            raise BadInputError(_readable(error)) from None

    def check(self) -> tuple[SearchSpace, tuple[dict[str, ParamValue], ...]]:
        """Refuse what does not fit the search space; return the space and the complete points to try.

        Nothing is opened or imported for it but the space's file.

        Raises:
            BadInputError: the space's file, a point to try, a sampler or pruner that the engine does not have, or one
                that the space does not fit.
        """
        space = load_space(self.space)
        self._check_engine(space)
        self._check_executor()
        points = tuple(space.complete(point) for point in (*space.points, *self.try_points))
        if self.sampler == "grid" and (size := math.prod(len(values) for values in space.grid.values())) > MAX_GRID:
            raise BadInputError(
                f"The grid of space {space.name!r} has {size:,} points; expected at most {MAX_GRID:,}. "
                "State fewer grid values in the space's file, or take another sampler."
            )
        return space, points

    def _check_engine(self, space: SearchSpace) -> None:
        if self.sampler not in (known := SAMPLERS[self.engine]):
            raise BadInputError(
                f"--sampler {self.sampler} is none of --engine {self.engine}. Expected one of {', '.join(known)}."
            )
        if self.engine not in PRUNING_ENGINES and self.pruner != "none":
            raise BadInputError(
                f"Found --pruner {self.pruner} beside --engine {self.engine}, which has no pruners. Leave it out: "
                "of its samplers, hyperband gives most trials few epochs."
            )
        if self.sampler == "hyperband" and not isinstance(space.parameters.get("epochs"), Int):
            raise BadInputError(
                f"--sampler hyperband decides how many epochs a trial takes, and space {space.name!r} does not search "
                "them in a range. Expected `epochs` under `parameters` with `type: int`; or take another sampler."
            )

    def _check_executor(self) -> None:
        if self.executor == "local":
            asked = [name for name in ("address", "worker_cpus", "worker_gpus") if getattr(self, name) is not None]
            if asked:
                option = f"--{asked[0].replace('_', '-')}"
                raise BadInputError(f"{option} is for workers on a Ray cluster. Expected --executor ray beside it.")
        elif find_spec("ray") is None:
            raise BadInputError(
                "--executor ray needs Ray, which is not installed. Expected the extra `ray`: "
                "pip install -e '.[ray]' in the checkout; or leave the option out, to train on this machine."
            )
        else:
            self.cluster_address()

    def cluster_address(self) -> str | None:
        """Return where the Ray cluster is; None where one is to be started here.

        Raises:
            BadInputError: RAY_ADDRESS says neither.
        """
        found = self.address or os.environ.get("RAY_ADDRESS") or None
        try:
            return None if found is None else _checked_address(found)
        except ValueError as error:
            raise BadInputError(
                f"RAY_ADDRESS is {found!r}: {error}. Correct it, or name another with --address."
            ) from None

    def command(self, interpreter: str = "python", always: tuple[str, ...] = ()) -> str:
        """Write the command line that asks for this study, without the defaults but for those in `always`."""
        words = [interpreter, "-m", "experiments.run_study"]
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name == "try_points":
                words += [word for point in value for word in ("--try", json.dumps(point))]
            elif value is True:
                words.append(f"--{name}")
            elif name in always or value != (MOST_TRIALS if name == "trials" and self.budget else field.default):
                words += [f"--{name.replace('_', '-')}", _typed(name, value)]
        return shlex.join(words)


def parse_duration(text: str, option: str = "--timeout") -> float:
    """Turn `90`, `45s`, `1.5h`, `1h30m`, `2 days`, `01:30:00`, `1-12:00:00` or `PT1H30M` into seconds.

    Raises:
        BadInputError: the text is none of these, or not above zero.
    """
    # A bare number is seconds, but not the one in `1h30`, where another unit is meant.
    written = re.sub(rf"^({_NUMBER})$", r"\1s", " ".join(text.lower().split()))
    match = DURATION.fullmatch(written) or CLOCK.fullmatch(written)
    amounts = {unit: float(part) for unit, part in match.groupdict().items() if part} if match else {}
    try:
        seconds = timedelta(**amounts).total_seconds()
    except OverflowError:
        seconds = 0.0
    if seconds <= 0:
        raise BadInputError(
            f"{option} {text!r} is no duration. Expected for instance 90s, 30m, 1h30m, 1.5h, 2d or 01:30:00."
        )
    return seconds


def parse_size(text: str, option: str = "--worker-memory") -> int:
    """Turn `4G`, `1.5G`, `900M` or `4GiB` into bytes, with units of 1024; a number without one is bytes.

    Raises:
        BadInputError: the text is none of these, or less than a byte.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)(?:\s*([KMGT])(?:I?B)?)?", text.strip().upper())
    size = int(float(match[1]) * 1024 ** UNITS.index(match[2] or "")) if match else 0
    if size < 1:
        raise BadInputError(f"{option} {text!r} is no size. Expected for instance 4G, 1.5G or 900M.")
    return size


def _typed(name: str, value: object) -> str:
    """Write a field's value as one would type it."""
    if name in DURATIONS and isinstance(value, float):
        return f"{math.ceil(value)}s"
    if name in SIZES and isinstance(value, int):
        power = next(power for power in reversed(range(len(UNITS))) if value % 1024**power == 0)
        return f"{value // 1024**power}{UNITS[power]}"
    return str(value)


def _readable(error: ValidationError) -> str:
    problems = [
        f"{'.'.join(map(str, each['loc']))} is {each['input']!r}: {each['msg'].removeprefix('Value error, ')}."
        for each in error.errors(include_url=False)
    ]
    return "The study cannot be configured: " + " ".join(problems)
