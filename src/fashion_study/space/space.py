"""Search spaces: what a study may vary. Declared in YAML, checked before all else."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    PrivateAttr,
    StrictBool,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from fashion_study.errors import BadInputError
from fashion_study.text import did_you_mean, printable, shown, shown_list
from fashion_study.trial import Hyperparameters, ParamValue

MAX_VALUES = 1_000
MAX_ENUMERATED = 16
MAX_POINTS = 100
# Texts that are meant as numbers or, as YAML 1.1 had it, as booleans.
MISTAKEN_NUMBER = re.compile(r"[-+]?[.\d][\d_,.]*(?:e[-+]?\d+)?", re.IGNORECASE)
MISTAKEN_BOOLEAN = re.compile(r"y|yes|no?|on|off|true|false", re.IGNORECASE)


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
    if faults := list(_faults(parameter)):
        raise ValueError("\n".join(faults))
    return parameter


def _faults(parameter: Int | Float | Categorical) -> Iterator[str]:
    if isinstance(parameter, Categorical):
        yield from _repeated("choices", parameter.choices)
        return
    if parameter.low > parameter.high:
        yield f"found low {parameter.low} above high {parameter.high}; allowed: low at or below high"
        return
    if parameter.log and parameter.low <= 0:
        yield f"found log with low {parameter.low}; allowed: log with low above 0"
    if parameter.log and parameter.step is not None and not (isinstance(parameter, Int) and parameter.step == 1):
        yield f"found log with step {parameter.step}; allowed: log or step, not both"
    if not parameter.contains(parameter.high):
        yield (
            f"found high {parameter.high}, which is not low {parameter.low} plus steps of {parameter.step}; "
            "allowed: low plus a whole number of steps"
        )
    yield from _repeated("grid", parameter.grid or ())
    for value in parameter.grid or ():
        if not parameter.contains(value):
            yield f"found grid value {value}; allowed: {parameter.allowed}"


Parameter = Annotated[Int | Float | Categorical, Field(discriminator="type"), AfterValidator(_checked)]
_PARAMETER: TypeAdapter[Parameter] = TypeAdapter(Parameter)


class SearchSpace(BaseModel):
    """What a study varies (`parameters`), the point where it starts (`baseline`) and what stays the same (`fixed`).

    A field of Hyperparameters that stands under neither has its default; `baseline` names each parameter. `points` are
    tried right after the baseline, which supplies what they leave out: what its author knew before any study.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(strict=True, pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
    purpose: Text
    baseline: dict[str, Value]
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    # `fixed:` is null when its last line has moved to `parameters:`.
    fixed: Annotated[dict[str, Value], BeforeValidator(lambda value: {} if value is None else value)] = {}
    points: Annotated[tuple[dict[str, Value], ...], Field(max_length=MAX_POINTS)] = ()
    _source_text: str = PrivateAttr("")

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            space = handler(data)
            problems = list(_conflicts(space))
        except ValidationError as error:
            problems = problems_of(error)
            # What can be read is checked all the same: a user is told everything at once, and nothing twice.
            places = {problem.partition(": ")[0] for problem in problems}
            problems += [each for each in _conflicts_of_readable(data) if each.partition(": ")[0] not in places]
        if problems:
            raise ValueError("\n".join(problems))
        return space

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
        """Return the SHA-256 (hex) of the space without its name, its reasons and its points, which may change."""
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
            return int(self.fixed.get("epochs", Hyperparameters().epochs))
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
        if problems := list(_off_space(partial, self)):
            raise BadInputError("\n".join(problems))
        return {**self.baseline, **partial}


def _repeated(field: str, values: tuple[ParamValue, ...]) -> Iterator[str]:
    if len(set(values)) < len(values):
        yield f"found a value twice in {field} ({shown_list(values)}); allowed: each once"


def _off_space(partial: Mapping[str, ParamValue], space: SearchSpace) -> Iterator[str]:
    unsearched = Hyperparameters().model_dump() | space.fixed
    for name, value in partial.items():
        if name in space.parameters:
            if not space.parameters[name].contains(value):
                yield f"{name}: {_found(value)}; allowed: {space.parameters[name].allowed}"
        elif name in unsearched:
            yield (
                f"{name} is fixed at {unsearched[name]!r} in space {space.name!r}; "
                "to search it, give it a range under `parameters` and a value under `baseline`"
            )
        else:
            hint = did_you_mean(name, space.parameters)
            yield f"unknown parameter {shown(name)}{hint}; allowed: {shown_list(space.parameters)}"


def _values_for_grid(name: str, parameter: Parameter) -> tuple[ParamValue, ...]:
    if isinstance(parameter, Categorical):
        return parameter.choices
    if parameter.grid is not None:
        return parameter.grid
    if parameter.low == parameter.high:
        return (parameter.low,)
    if parameter.step is None:
        found = "a range of numbers, which has no grid of its own"
    elif (steps := round((parameter.high - parameter.low) / parameter.step)) < MAX_ENUMERATED:
        # As decimals: 0.1 plus twice 0.1 is to be 0.3.
        low, step = Decimal(str(parameter.low)), Decimal(str(parameter.step))
        return tuple(type(parameter.low)(low + step * index) for index in range(steps + 1))
    else:
        kind = "whole numbers" if isinstance(parameter, Int) else "numbers"
        found = f"{steps + 1} {kind}; at most {MAX_ENUMERATED} are listed by themselves"
    raise BadInputError(f"{name}: found {found}; allowed in a grid search: a parameter with `grid: [...]`")


def _conflicts(space: SearchSpace) -> Iterator[str]:
    yield from _misplaced(space)
    yield from _impossible(space)
    yield from _off_baseline(space)
    for number, point in enumerate(space.points, 1):
        yield from (f"points, number {number}: {problem}" for problem in _off_space(point, space))


def _conflicts_of_readable(data: object) -> Iterator[str]:
    """Check a space that has faults, as far as its sections can be read."""
    sections: list[Any] = (
        [data.get("baseline"), data.get("parameters"), data.get("fixed") or {}] if isinstance(data, dict) else [None]
    )
    if not all(isinstance(section, dict) and all(isinstance(name, str) for name in section) for section in sections):
        return
    baseline, parameters, fixed = sections
    readable = {name: _readable(parameter) for name, parameter in parameters.items()}
    yield from _conflicts(SearchSpace.model_construct(baseline=baseline, parameters=readable, fixed=fixed, points=()))


def _readable(parameter: object) -> Parameter | None:
    try:
        return _PARAMETER.validate_python(parameter)
    except ValidationError:
        return None


def _misplaced(space: SearchSpace) -> Iterator[str]:
    known = Hyperparameters.model_fields
    allowed = ", ".join(known)
    for place, names in (("parameters", space.parameters), ("fixed", space.fixed)):
        for name in sorted(names.keys() - known.keys()):
            if hint := did_you_mean(name, known):
                yield f"{place}.{printable(name)}: unknown parameter{hint}"
            else:
                yield f"{place}.{printable(name)}: unknown parameter; allowed: {allowed}"
                allowed = "as above"  # Not the whole list once more.
    for name in known:
        if name in space.parameters and name in space.fixed:
            yield f"{name}: found under `parameters` and under `fixed`; allowed: one of the two"


def _impossible(space: SearchSpace) -> Iterator[str]:
    found = [(f"fixed.{name}", name, value) for name, value in space.fixed.items()]
    for name, parameter in _read(space):
        values = parameter.choices if isinstance(parameter, Categorical) else (parameter.low, parameter.high)
        found += [(f"parameters.{name}", name, value) for value in values]
    for place, name, value in found:
        if name not in Hyperparameters.model_fields:
            continue
        try:
            Hyperparameters.model_validate({name: value})
        except ValidationError as error:
            yield f"{place}: {_found(value)}; allowed: {_rule(error.errors()[0]['msg'])}"


def _off_baseline(space: SearchSpace) -> Iterator[str]:
    searched = printable(", ".join(map(printable, space.parameters)))
    for name in sorted(space.baseline.keys() - space.parameters.keys()):
        yield f"baseline.{printable(name)}: not searched; allowed: {searched}"
    for name, parameter in _read(space):
        if name not in space.baseline:
            yield f"baseline.{printable(name)}: missing; allowed: {parameter.allowed}"
        elif not parameter.contains(space.baseline[name]):
            yield f"baseline.{printable(name)}: {_found(space.baseline[name])}; allowed: {parameter.allowed}"


def _read(space: SearchSpace) -> Iterator[tuple[str, Parameter]]:
    # Of a space with faults, a parameter that cannot be read is None.
    return ((name, parameter) for name, parameter in space.parameters.items() if parameter is not None)


def problems_of(error: ValidationError) -> list[str]:
    """Return a message for each problem: where it is, what was found and what is allowed."""
    problems = []
    for item in error.errors(include_url=False):
        # Within `parameters`, pydantic names the member of the union after the parameter.
        steps = [step for depth, step in enumerate(item["loc"]) if not (depth == 2 and item["loc"][0] == "parameters")]
        place = printable(".".join(str(step) for step in steps))
        prefix = f"{place}: " if place else ""
        found = "" if item["type"] in {"missing", "value_error"} else f"{_found(item['input'])}; "
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


def _found(value: object) -> str:
    """Describe what was found; of a text that is meant as something else, say that it is one."""
    if isinstance(value, str) and MISTAKEN_NUMBER.fullmatch(value):
        return f"found {shown(value)}, a text (a number has no quotes, commas or underscores)"
    return f"found {shown(value)}" + (
        ", a text" if isinstance(value, str) and MISTAKEN_BOOLEAN.fullmatch(value) else ""
    )


def _rule(message: str) -> str:
    return message.removeprefix("Input should be ").replace("a valid boolean", "true or false")
