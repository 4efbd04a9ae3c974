"""What a user asks of a study, checked before anything is opened or imported."""

import json
import math
import re
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fashion_study.errors import BadInputError
from fashion_study.space import SearchSpace, Value
from fashion_study.space_file import load_space

SamplerName = Literal["tpe", "random", "qmc", "grid"]
PrunerName = Literal["successive-halving", "hyperband", "median", "none"]
DatasetChoice = Literal["auto", "fashion-mnist", "digits"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]

MAX_GRID = 100_000
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _checked_study_name(name: str | None) -> str | None:
    if name is not None and not STUDY_NAME.fullmatch(name):
        raise ValueError("expected up to 100 letters, digits, '.', '_' and '-', the first a letter or digit")
    return name


class StudyConfig(BaseModel):
    """Describe one study; the defaults are those of `python -m experiments.run_study`.

    `trials` is a total: a study that has some already is continued to it. `timeout` is in seconds: after it no
    trial is started, and the running ones end. `workers` defaults to one per GPU, else one per usable core.
    The best `finalists` trials are trained again `repeats` times; left out, 3 and 3 as far as that takes no more
    epochs than the trials did. `try_points` are tried first, after the baseline; what a point leaves out comes from
    the baseline.

    Raises:
        BadInputError: a field is unknown or out of its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: str = "baseline"
    dataset: DatasetChoice = "auto"
    data_dir: Path | None = None
    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "successive-halving"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    study: Annotated[str | None, AfterValidator(_checked_study_name)] = None
    store: Path = Path("mlruns")
    precision: PrecisionChoice = "auto"
    limit_train: Annotated[int, Field(ge=1)] | None = None
    finalists: Annotated[int, Field(ge=0, le=100)] | None = None
    repeats: Annotated[int, Field(ge=1, le=100)] | None = None
    try_points: tuple[dict[str, Value], ...] = ()

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise BadInputError(_readable(error)) from None

    def check(self) -> SearchSpace:
        """Refuse what does not fit the search space, without opening or importing anything; return the space.

        Raises:
            BadInputError: the space's file, a point to try, or a grid that the space does not have.
        """
        space = load_space(self.space)
        for point in self.try_points:
            space.complete(point)
        if self.sampler == "grid" and (size := math.prod(len(values) for values in space.grid.values())) > MAX_GRID:
            raise BadInputError(
                f"The grid of space {space.name!r} has {size:,} points; expected at most {MAX_GRID:,}. "
                "State fewer grid values in the space's file, or take another sampler."
            )
        return space

    def command(self, interpreter: str = "python", always: tuple[str, ...] = ()) -> str:
        """Write the command line that asks for this study, without the defaults but for those in `always`."""
        words = [interpreter, "-m", "experiments.run_study"]
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name == "try_points":
                words += [word for point in value for word in ("--try", json.dumps(point))]
            elif value != field.default or name in always:
                shown = f"{math.ceil(value)}s" if name == "timeout" else str(value)
                words += [f"--{name.replace('_', '-')}", shown]
        return shlex.join(words)


def parse_duration(text: str) -> float:
    """Turn `90`, `45s`, `30m`, `1h30m` or `2d` into seconds.

    Raises:
        BadInputError: the text is none of these, or not above zero.
    """
    units = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip().lower())
    parts = match.groups() if match else ()
    try:
        amounts = {units[unit]: int(part) for unit, part in zip(units, parts, strict=False) if part}
        seconds = timedelta(**amounts).total_seconds()
    except (OverflowError, ValueError):
        seconds = 0.0
    if seconds <= 0:
        raise BadInputError(f"--timeout {text!r} is no duration. Expected for instance 90s, 30m, 1h30m or 2d.")
    return seconds


def _readable(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{field} is {problem['input']!r}: {message}.")
    return "The study cannot be configured: " + " ".join(lines)
