"""Search spaces: what a study may vary. Declared in YAML, checked before anything else happens."""

import difflib
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
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
from fashion_study.trial import Hyperparameters, ParamValue

MAX_BYTES = 32_768
MAX_DEPTH = 8
MAX_VALUES = 1_000
MAX_ENUMERATED = 16
MAX_PROBLEMS_SHOWN = 8


def _require_plain(value: object) -> ParamValue:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"found {_shown(value)}; allowed: a whole number, a number or a text")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"found {value}; allowed: a finite number")
    return value


def _empty_for_nothing(value: object) -> object:
    # `fixed:` keeps standing when its last line has moved to `parameters:`; YAML reads it as null then.
    return {} if value is None else value


Text = Annotated[str, Field(strict=True, min_length=1, max_length=2_000)]
Value = Annotated[ParamValue, PlainValidator(_require_plain)]
Whole = Annotated[int, Field(strict=True, ge=-(2**53), le=2**53)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Declaration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    why: Text


class Int(_Declaration):
    """Declare whole numbers from `low` to `high`, both included, `step` apart or spread by `log`."""

    type: Literal["int"] = "int"
    low: Whole
    high: Whole
    step: Annotated[Whole, Field(ge=1)] = 1
    log: StrictBool = False
    grid: Annotated[tuple[Whole, ...], Field(min_length=1, max_length=MAX_VALUES)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self)
        return self

    @property
    def allowed(self) -> str:
        """Describe the legal values for an error message."""
        steps = "" if self.step == 1 else f" in steps of {self.step}"
        return f"a whole number from {self.low} to {self.high}{steps}"

    def contains(self, value: object) -> bool:
        """Say whether `value` is legal: type, range and step. A bool is not a whole number."""
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high and (value - self.low) % self.step == 0

    def values_for_grid(self) -> tuple[int, ...]:
        """List the values for a grid search: those under `grid`, or all of them where they are few."""
        if self.grid is not None:
            return self.grid
        values = range(self.low, self.high + 1, self.step)
        if len(values) > MAX_ENUMERATED:
            raise _needs_grid(
                f"{len(values)} whole numbers; at most {MAX_ENUMERATED} are listed by themselves"
            )
        return tuple(values)


class Float(_Declaration):
    """Declare numbers from `low` to `high`, both included, `step` apart or spread by `log`."""

    type: Literal["float"] = "float"
    low: Real
    high: Real
    step: Annotated[Real, Field(gt=0)] | None = None
    log: StrictBool = False
    grid: Annotated[tuple[Real, ...], Field(min_length=1, max_length=MAX_VALUES)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self)
        return self

    @property
    def allowed(self) -> str:
        """Describe the legal values for an error message."""
        steps = "" if self.step is None else f" in steps of {self.step}"
        return f"a number from {self.low} to {self.high}{steps}"

    def contains(self, value: object) -> bool:
        """Say whether `value` is legal: type, range and, to within rounding, step."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        if not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return math.isfinite(steps) and abs(steps - round(steps)) < 1e-8

    def values_for_grid(self) -> tuple[float, ...]:
        """List the values for a grid search: those under `grid`."""
        if self.grid is None:
            raise _needs_grid("a range of numbers, which has no grid of its own")
        return self.grid


class Categorical(_Declaration):
    """Declare a list of choices, in an order that has no meaning."""

    type: Literal["categorical"] = "categorical"
    choices: Annotated[tuple[Value, ...], Field(min_length=1, max_length=MAX_VALUES)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require_distinct("choices", self.choices)
        return self

    @property
    def allowed(self) -> str:
        """Describe the legal values for an error message."""
        return "one of " + _shown_list(self.choices)

    def contains(self, value: object) -> bool:
        """Say whether `value` is one of the choices, in value and in type."""
        return any(type(choice) is type(value) and choice == value for choice in self.choices)

    def values_for_grid(self) -> tuple[ParamValue, ...]:
        """List the values for a grid search: all choices."""
        return self.choices


Parameter = Annotated[Int | Float | Categorical, Field(discriminator="type")]


class SearchSpace(BaseModel):
    """Say what a study varies (`parameters`), from where it starts (`baseline`) and what stays (`fixed`).

    Each field of Hyperparameters stands under `parameters` or `fixed`; `baseline` names each parameter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(strict=True, pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
    purpose: Text
    baseline: dict[str, Value]
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    fixed: Annotated[dict[str, Value], BeforeValidator(_empty_for_nothing)]
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
        """Give the file's own text, comments and all; empty for a space that was built in code."""
        return self._source_text

    @property
    def digest(self) -> str:
        """Identify what the space means (SHA-256, hex): its name and its reasons may change, nothing else."""
        meaning = self.model_dump(mode="json", include={"baseline", "parameters", "fixed"})
        for parameter in meaning["parameters"].values():
            del parameter["why"]
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    @property
    def baseline_point(self) -> Hyperparameters:
        """Give the point that every study of this space tries first."""
        return self.hyperparameters(self.baseline)

    @property
    def max_epochs(self) -> int:
        """Give the most epochs that a trial can take: a pruner's full resource."""
        epochs = self.parameters.get("epochs")
        if epochs is None:
            return int(self.fixed["epochs"])
        return int(max(epochs.choices)) if isinstance(epochs, Categorical) else int(epochs.high)

    @property
    def grid(self) -> dict[str, tuple[ParamValue, ...]]:
        """List each parameter's values for a grid search; raise BadInputError where one has none."""
        return {name: _grid_of(name, parameter) for name, parameter in self.parameters.items()}

    def hyperparameters(self, values: Mapping[str, ParamValue]) -> Hyperparameters:
        """Join values for all searched parameters with the fixed ones."""
        if values.keys() != self.parameters.keys():
            raise BadInputError(
                f"a point of space {self.name!r} has values for {_shown_list(values)}; "
                f"allowed: exactly {_shown_list(self.parameters)}"
            )
        try:
            return Hyperparameters.model_validate({**self.fixed, **values})
        except ValidationError as error:
            raise BadInputError("\n".join(_readable(error))) from error

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
                    f"unknown parameter {_shown(name)}{_did_you_mean(name, self.parameters)}; "
                    f"allowed: {_shown_list(self.parameters)}"
                )
            if not self.parameters[name].contains(value):
                raise BadInputError(
                    f"{name}: found {_shown(value)}; allowed: {self.parameters[name].allowed}"
                )
        return {**self.baseline, **partial}


def load_space(name_or_file: str) -> SearchSpace:
    """Read a search space: one of the project's own by its name, or any YAML file by its path.

    A name has no path separator and no suffix; it means the same from every working directory.
    Raise BadInputError with one message: the file, the parameter, what was found and what is allowed.
    """
    path = _own_file(name_or_file) if _is_name(name_or_file) else Path(name_or_file)
    try:
        text = _read_text(path)
        space = _space_from(_parse(text))
    except BadInputError as error:
        raise BadInputError(f"Search space {_printable(str(path))}: {error}") from None
    space._source_text = text
    return space


def _check_range(parameter: Int | Float) -> None:
    if parameter.low > parameter.high:
        raise ValueError(
            f"found low {parameter.low} above high {parameter.high}; allowed: low at or below high"
        )
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


def _require_distinct(field: str, values: tuple[ParamValue, ...]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"found a value twice in {field} ({_shown_list(values)}); allowed: each once")


def _needs_grid(found: str) -> BadInputError:
    return BadInputError(f"found {found}; allowed in a grid search: a parameter with `grid: [...]`")


def _grid_of(name: str, parameter: Int | Float | Categorical) -> tuple[ParamValue, ...]:
    try:
        return parameter.values_for_grid()
    except BadInputError as error:
        raise BadInputError(f"{name}: {error}") from None


def _misplaced(space: SearchSpace) -> Iterator[str]:
    known = Hyperparameters.model_fields
    for place, names in (("parameters", space.parameters), ("fixed", space.fixed)):
        for name in sorted(names.keys() - known.keys()):
            hint = _did_you_mean(name, known)
            yield f"{place}.{_printable(name)}: unknown parameter{hint}; allowed: {', '.join(known)}"
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
            yield f"{place}: found {_shown(value)}; allowed: {_rule(error.errors()[0]['msg'])}"


def _off_baseline(space: SearchSpace) -> Iterator[str]:
    for name in sorted(space.baseline.keys() - space.parameters.keys()):
        yield f"baseline.{_printable(name)}: not searched; allowed: {', '.join(space.parameters)}"
    for name, parameter in space.parameters.items():
        if name not in space.baseline:
            yield f"baseline.{_printable(name)}: missing; allowed: {parameter.allowed}"
        elif not parameter.contains(space.baseline[name]):
            yield f"baseline.{name}: found {_shown(space.baseline[name])}; allowed: {parameter.allowed}"


def _is_name(name_or_file: str) -> bool:
    path = Path(name_or_file)
    return path.name == name_or_file and path.suffix.lower() not in {".yaml", ".yml"}


def _own_file(name: str) -> Path:
    own = {path.stem: path for path in sorted(_own_directory().glob("*.yaml"))}
    if name not in own:
        raise BadInputError(
            f"There is no search space named {_shown(name)}{_did_you_mean(name, own)}. "
            f"Available: {', '.join(own)}. A file of your own is given by its path, such as ./my_space.yaml."
        )
    return own[name]


def _own_directory() -> Path:
    # An installed wheel has the folder beside the package; a checkout has it beside `src`.
    here = Path(__file__).resolve()
    beside_package = here.parents[1] / "search_spaces"
    return beside_package if beside_package.is_dir() else here.parents[2] / "search_spaces"


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            raise BadInputError("found no regular file there; allowed: the path of a YAML file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"cannot be read: {error.__class__.__name__}; allowed: a readable YAML file"
        ) from error
    if len(raw) > MAX_BYTES:
        raise BadInputError(f"found more than {MAX_BYTES} bytes; allowed: at most {MAX_BYTES}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"found a byte that is not UTF-8 at offset {error.start}; allowed: UTF-8 text"
        ) from error


def _parse(text: str) -> object:
    _require_visible(text, "the file")
    try:
        node = yaml.compose(text, Loader=_GuardedLoader)
    except yaml.MarkedYAMLError as error:
        raise BadInputError(
            f"found invalid YAML{_line(error.problem_mark)}: {_printable(str(error.problem))}"
        ) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets chr() and int() fail on absurd escapes and version numbers.
        raise BadInputError(f"found invalid YAML: {_printable(str(error))}") from error
    return None if node is None else _plain(node, "")


class _GuardedLoader(yaml.SafeLoader):
    """Read plain data only, with numbers as in YAML 1.2: `3e-5` is a number, `1:30` and `yes` are text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - the parent declares it as an instance variable
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse what a search space never needs before it can expand, recurse or name a Python object."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = _line(event.start_mark)
        if getattr(event, "anchor", None) is not None:
            raise BadInputError(
                f"found an anchor or alias ({_printable(event.anchor)}){line}; allowed: plain values"
            )
        if getattr(event, "tag", None) is not None:
            raise BadInputError(f"found a tag ({_printable(str(event.tag))}){line}; allowed: plain values")
        if self.depth >= MAX_DEPTH:
            raise BadInputError(f"found more than {MAX_DEPTH} levels{line}; allowed: {MAX_DEPTH}")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_SCALARS: dict[str, tuple[str, str, Callable[[str], ParamValue | None]]] = {
    "tag:yaml.org,2002:null": (r"(?:~|null|Null|NULL|)\Z", "~nN\0", lambda _: None),
    "tag:yaml.org,2002:bool": (
        r"(?:true|True|TRUE|false|False|FALSE)\Z",
        "tTfF",
        lambda text: text.lower() == "true",
    ),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]{1,18}\Z", "-+0123456789", int),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z",
        "-+.0123456789",
        float,
    ),
}
for _tag, (_pattern, _first, _) in _SCALARS.items():
    # PyYAML looks an empty scalar up under the empty string.
    _GuardedLoader.add_implicit_resolver(_tag, re.compile(_pattern), ["" if c == "\0" else c for c in _first])


def _plain(node: yaml.Node, place: str) -> object:
    if isinstance(node, yaml.MappingNode):
        return _plain_mapping(node, place)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, place) for item in node.value]
    _require_visible(node.value, place or "the file")
    return _SCALARS[node.tag][2](node.value) if node.tag in _SCALARS else node.value


def _plain_mapping(node: yaml.MappingNode, place: str) -> dict[str, object]:
    plain: dict[str, object] = {}
    for key_node, value_node in node.value:
        key = _plain(key_node, place)
        line = _line(key_node.start_mark)
        if not isinstance(key, str):
            raise BadInputError(
                f"{place or 'top level'}: found {_shown(key)} as a name{line}; allowed: a text"
            )
        inner = f"{place}.{_printable(key)}" if place else _printable(key)
        if key in plain:
            raise BadInputError(f"{inner}: found twice{line}; allowed: once")
        plain[key] = _plain(value_node, inner)
    return plain


def _require_visible(text: str, place: str) -> None:
    for position, character in enumerate(text):
        # Escape sequences would reach a terminal, and bidirectional marks show a text that is not there.
        if character not in "\n\r\t" and unicodedata.category(character) in {
            "Cc",
            "Cf",
            "Cs",
            "Co",
            "Zl",
            "Zp",
        }:
            raise BadInputError(
                f"{place}: found the invisible character U+{ord(character):04X} at offset {position}; "
                "allowed: visible text"
            )


def _space_from(data: object) -> SearchSpace:
    if not isinstance(data, dict):
        raise BadInputError(
            f"found {_shown(data)}; allowed: {', '.join(SearchSpace.model_fields)}, each with its value"
        )
    try:
        return SearchSpace.model_validate(data)
    except ValidationError as error:
        problems = _readable(error)
    more = len(problems) - MAX_PROBLEMS_SHOWN
    rest = [f"and {more} more"] if more > 0 else []
    raise BadInputError("\n  ".join([*problems[:MAX_PROBLEMS_SHOWN], *rest]))


def _readable(error: ValidationError) -> list[str]:
    problems = []
    for item in error.errors(include_url=False):
        # Within `parameters`, pydantic names the member of the union after the parameter.
        steps = [
            step
            for depth, step in enumerate(item["loc"])
            if not (depth == 2 and item["loc"][0] == "parameters")
        ]
        place = _printable(".".join(str(step) for step in steps))
        prefix = f"{place}: " if place else ""
        found = "" if item["type"] in {"missing", "value_error"} else f"found {_shown(item['input'])}; "
        problems += [
            f"{prefix}{found}{line}" for line in _allowed(item["type"], item["loc"], item["msg"]).split("\n")
        ]
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


def _did_you_mean(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name[:64], known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _line(mark: object) -> str:
    return f" in line {mark.line + 1}" if isinstance(mark, yaml.Mark) else ""


def _shown_list(values: Iterator[object] | Mapping[str, object] | tuple[object, ...]) -> str:
    text = ", ".join(repr(value) for value in values)
    return text if len(text) <= 200 else text[:199] + "…"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _printable(text: str) -> str:
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= 300 else shown[:299] + "…"
