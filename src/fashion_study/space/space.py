"""Search spaces: what a study may vary. Declared in YAML, checked before all else."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    StrictBool,
    ValidationError,
    model_validator,
)

from fashion_study.errors import BadInputError
from fashion_study.text import did_you_mean, printable, shown, shown_list
from fashion_study.trial import Hyperparameters, ParamValue

MAX_VALUES = 1_000
MAX_ENUMERATED = 16


def _require_plain(value: object) -> ParamValue:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"found {shown(value)}; allowed: a whole number, a number or a text")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"found {value}; allowed: a finite number")
    return value


Text = Annotated[str, Field(strict=True, min_length=1, max_length=2_000)]
Value = Annotated[ParamValue, PlainValidator(_require_plain)]
Whole = Annotated[int, Field(strict=True, ge=-(2**53), le=2**53)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Declaration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    why: Text


class Int(_Declaration):
    """Whole numbers from `low` to `high`, both included, `step` apart or spread by `log`."""

    type: Literal["int"] = "int"
    low: Whole
    high: Whole
    step: Annotated[Whole, Field(ge=1)] = 1
    log: StrictBool = False
    grid: Annotated[tuple[Whole, ...], Field(min_length=1, max_length=MAX_VALUES)] | None = None

    @property
    def allowed(self) -> str:
        """Describe the legal values for an error message."""
        steps = "" if self.step == 1 else f" in steps of {self.step}"
        return f"a whole number from {self.low} to {self.high}{steps}"

    def contains(self, value: object) -> bool:
        """Return whether `value` is legal: type, range and step. A bool is not a whole number."""
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high and (value - self.low) % self.step == 0


class Float(_Declaration):
    """Numbers from `low` to `high`, both included, `step` apart or spread by `log`."""

    type: Literal["float"] = "float"
    low: Real
    high: Real
    step: Annotated[Real, Field(gt=0)] | None = None
    log: StrictBool = False
    grid: Annotated[tuple[Real, ...], Field(min_length=1, max_length=MAX_VALUES)] | None = None

    @property
    def allowed(self) -> str:
        """Describe the legal values for an error message."""
        steps = "" if self.step is None else f" in steps of {self.step}"
        return f"a number from {self.low} to {self.high}{steps}"

    def contains(self, value: object) -> bool:
        """Return whether `value` is legal: type, range and, to within rounding, step."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        if not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return math.isfinite(steps) and abs(steps - round(steps)) < 1e-8


class Categorical(_Declaration):
    """A list of choices, in an order that has no meaning."""

    type: Literal["categorical"] = "categorical"
    choices: Annotated[tuple[Value, ...], Field(min_length=1, max_length=MAX_VALUES)]

    @property
    def allowed(self) -> str:
        """Describe the legal values for an error message."""
        return "one of " + shown_list(self.choices)

    def contains(self, value: object) -> bool:
        """Return whether `value` is one of the choices, in value and in type."""
        return any(type(choice) is type(value) and choice == value for choice in self.choices)


def _checked(parameter: Int | Float | Categorical) -> Int | Float | Categorical:
    if isinstance(parameter, Categorical):
        _require_distinct("choices", parameter.choices)
        return parameter
    if parameter.low > parameter.high:
        raise ValueError(f"found low {parameter.low} above high {parameter.high}; allowed: low at or below high")
    if parameter.log and parameter.low <= 0:
        raise ValueError(f"found log with low {parameter.low}; allowed: log with low above 0")
    stepped = parameter.step is not None and not (isinstance(parameter, Int) and parameter.step == 1)
    if parameter.log and stepped:
        raise ValueError(f"found log with step {parameter.step}; allowed: log or step, not both")
    if not parameter.contains(parameter.high):
        raise ValueError(
            f"found high {parameter.high}, which is not low {parameter.low} plus steps of {parameter.step}; "
            "allowed: low plus a whole number of steps"
        )
    _require_distinct("grid", parameter.grid or ())
    for value in parameter.grid or ():
        if not parameter.contains(value):
            raise ValueError(f"found grid value {value}; allowed: {parameter.allowed}")
    return parameter


Parameter = Annotated[Int | Float | Categorical, Field(discriminator="type"), AfterValidator(_checked)]


class SearchSpace(BaseModel):
    """What a study varies (`parameters`), the point where it starts (`baseline`) and what stays the same (`fixed`).

    Each field of Hyperparameters stands under `parameters` or `fixed`; `baseline` names each parameter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(strict=True, pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
    purpose: Text
    baseline: dict[str, Value]
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    # `fixed:` is null when its last line has moved to `parameters:`.
    fixed: Annotated[dict[str, Value], BeforeValidator(lambda value: {} if value is None else value)]
    _source_text: str = PrivateAttr("")

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [*_misplaced(self), *_impossible(self), *_off_baseline(self)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def __eq__(self, other: object) -> bool:
        # Pydantic would compare the private text too: comments and spacing are no part of a space.
        return isinstance(other, SearchSpace) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def source_text(self) -> str:
        """Return the file's text, comments included; empty for a space that was built in code."""
        return self._source_text

    @property
    def digest(self) -> str:
        """Return the SHA-256 (hex) of the space without its name and its reasons, which may change."""
        meaning = self.model_dump(mode="json", include={"baseline", "parameters", "fixed"})
        for parameter in meaning["parameters"].values():
            del parameter["why"]
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    @property
    def baseline_point(self) -> Hyperparameters:
        """Return the hyperparameters that every study of this space tries first."""
        return self.hyperparameters(self.baseline)

    @property
    def max_epochs(self) -> int:
        """Return the most epochs that a trial can take; the rungs of pruners derive from it."""
        epochs = self.parameters.get("epochs")
        if epochs is None:
            return int(self.fixed["epochs"])
        return int(max(epochs.choices)) if isinstance(epochs, Categorical) else int(epochs.high)

    @property
    def grid(self) -> dict[str, tuple[ParamValue, ...]]:
        """Return each parameter's values for a grid search: its choices, those under `grid`, or a small range.

        Raises:
            BadInputError: a parameter has too many values and no `grid`.
        """
        return {name: _values_for_grid(name, parameter) for name, parameter in self.parameters.items()}

    def hyperparameters(self, values: Mapping[str, ParamValue]) -> Hyperparameters:
        """Join values for all searched parameters with the fixed ones."""
        if values.keys() != self.parameters.keys():
            raise BadInputError(
                f"a point of space {self.name!r} has values for {shown_list(values)}; "
                f"allowed: exactly {shown_list(self.parameters)}"
            )
        try:
            return Hyperparameters.model_validate({**self.fixed, **values})
        except ValidationError as error:
            raise BadInputError("\n".join(problems_of(error))) from error

    def complete(self, partial: Mapping[str, ParamValue]) -> dict[str, ParamValue]:
        """Fill a partial point from the baseline; raise BadInputError for anything outside the space."""
        for name, value in partial.items():
            if name in self.fixed:
                raise BadInputError(
                    f"{name} is fixed at {self.fixed[name]!r} in space {self.name!r}; "
                    "to search it, move it from `fixed` to `parameters` and to `baseline`"
                )
            if name not in self.parameters:
                raise BadInputError(
                    f"unknown parameter {shown(name)}{did_you_mean(name, self.parameters)}; "
                    f"allowed: {shown_list(self.parameters)}"
                )
            if not self.parameters[name].contains(value):
                raise BadInputError(f"{name}: found {shown(value)}; allowed: {self.parameters[name].allowed}")
        return {**self.baseline, **partial}


def _require_distinct(field: str, values: tuple[ParamValue, ...]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"found a value twice in {field} ({shown_list(values)}); allowed: each once")


def _values_for_grid(name: str, parameter: Parameter) -> tuple[ParamValue, ...]:
    if isinstance(parameter, Categorical):
        return parameter.choices
    if parameter.grid is not None:
        return parameter.grid
    found = "a range of numbers, which has no grid of its own"
    if isinstance(parameter, Int):
        values = range(parameter.low, parameter.high + 1, parameter.step)
        if len(values) <= MAX_ENUMERATED:
            return tuple(values)
        found = f"{len(values)} whole numbers; at most {MAX_ENUMERATED} are listed by themselves"
    raise BadInputError(f"{name}: found {found}; allowed in a grid search: a parameter with `grid: [...]`")


def _misplaced(space: SearchSpace) -> Iterator[str]:
    known = Hyperparameters.model_fields
    for place, names in (("parameters", space.parameters), ("fixed", space.fixed)):
        for name in sorted(names.keys() - known.keys()):
            hint = did_you_mean(name, known)
            yield f"{place}.{printable(name)}: unknown parameter{hint}; allowed: {', '.join(known)}"
    for name in known:
        if name in space.parameters and name in space.fixed:
            yield f"{name}: found under `parameters` and under `fixed`; allowed: one of the two"
        if name not in space.parameters and name not in space.fixed:
            yield f"{name}: missing; allowed: a range under `parameters` or a value under `fixed`"


def _impossible(space: SearchSpace) -> Iterator[str]:
    found = [(f"fixed.{name}", name, value) for name, value in space.fixed.items()]
    for name, parameter in space.parameters.items():
        values = parameter.choices if isinstance(parameter, Categorical) else (parameter.low, parameter.high)
        found += [(f"parameters.{name}", name, value) for value in values]
    for place, name, value in found:
        if name not in Hyperparameters.model_fields:
            continue
        try:
            Hyperparameters.model_validate({name: value})
        except ValidationError as error:
            yield f"{place}: found {shown(value)}; allowed: {_rule(error.errors()[0]['msg'])}"


def _off_baseline(space: SearchSpace) -> Iterator[str]:
    searched = printable(", ".join(map(printable, space.parameters)))
    for name in sorted(space.baseline.keys() - space.parameters.keys()):
        yield f"baseline.{printable(name)}: not searched; allowed: {searched}"
    for name, parameter in space.parameters.items():
        if name not in space.baseline:
            yield f"baseline.{printable(name)}: missing; allowed: {parameter.allowed}"
        elif not parameter.contains(space.baseline[name]):
            yield f"baseline.{printable(name)}: found {shown(space.baseline[name])}; allowed: {parameter.allowed}"


def problems_of(error: ValidationError) -> list[str]:
    """Return a message for each problem: where it is, what was found and what is allowed."""
    problems = []
    for item in error.errors(include_url=False):
        # Within `parameters`, pydantic names the member of the union after the parameter.
        steps = [step for depth, step in enumerate(item["loc"]) if not (depth == 2 and item["loc"][0] == "parameters")]
        place = printable(".".join(str(step) for step in steps))
        prefix = f"{place}: " if place else ""
        found = "" if item["type"] in {"missing", "value_error"} else f"found {shown(item['input'])}; "
        problems += [f"{prefix}{found}{line}" for line in _allowed(item["type"], item["loc"], item["msg"]).split("\n")]
    return problems


def _allowed(kind: str, place: tuple[int | str, ...], message: str) -> str:
    if kind == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"int": Int, "float": Float, "categorical": Categorical}
        owner = models[str(place[2])] if len(place) > 2 else SearchSpace
        return f"unknown name; allowed: {', '.join(owner.model_fields)}"
    if kind == "missing":
        return "missing, and needed"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind.startswith("union_tag"):
        return "allowed: `type: int`, `type: float` or `type: categorical`"
    return f"allowed: {_rule(message)}"


def _rule(message: str) -> str:
    return message.removeprefix("Input should be ")
