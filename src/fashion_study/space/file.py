"""The file of a search space: found by its name or its path, read as plain YAML, refused in one message."""

import re
import unicodedata
from pathlib import Path

import yaml
from pydantic import ValidationError

from fashion_study.errors import BadInputError
from fashion_study.space.space import SearchSpace, problems_of
from fashion_study.text import did_you_mean, printable, shown, shown_list

# PyYAML takes half a second for the worst text of this length, and the project's own files have a tenth of it.
MAX_BYTES = 16_384
MAX_DEPTH = 8
MAX_PROBLEMS_SHOWN = 15
# Numbers as in YAML 1.2: `3e-5` is a number; `1:30` and `yes` are text.
INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# Files of other tools, by what stands in them.
OTHER_TOOLS = {
    "an experiment of Katib": r"kubeflow\.org/",
    "a configuration of Hydra": r"^(?:hydra|defaults)\s*:|hydra/",
    "a search space of Ray Tune": r"grid_search|\btune\.[a-z]+\(|^[ \t]+run[ \t]*:",
    "a study of Optuna": r"suggest_(?:int|float|cat)|(?:Int|Float|cal)Distribution|^(?:study_name|n_trials)\b",
    "a search space of KerasTuner": r"\bhp\.[A-Z]|class_name",
    "a search space of Hyperopt": r"\bhp\.[a-z]",
    "a search space of NNI": r"\b_type\b|^searchSpace",
    "an experiment of Determined": r"^searcher\s*:|\bminval\b",
    "a tuning job of SageMaker": r"ParameterRanges",
    "a study of Vizier": r"parameter_?specs|studySpec",
    "an experiment of Ax or SigOpt": r"\bbounds\b",
    "a sweep of Weights & Biases": r"^[ {\"]*method\b|\bdistribution\b",
}
OWN_SECTION = r"^[ {\"]*(?:purpose|baseline|fixed)[ \"]*:"
EXAMPLE = """
  name: mine
  purpose: What the study is to find out.
  baseline: {learning_rate: 1e-3}
  parameters:
    learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true, why: The reason for this range.}"""
# Control characters would reach a terminal, and bidirectional marks show a text that is not there.
INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def load_space(name_or_file: str) -> SearchSpace:
    """Read a search space: one of the project's own by its name, or any YAML file by its path.

    A name has no path separator and no suffix; it means the same from every working directory.
    Raise BadInputError with one message: the file, the parameter, what was found and what is allowed.
    """
    path = Path(name_or_file)
    if path.name == name_or_file and not path.suffix:
        path = _own_file(name_or_file)
    try:
        text = _read_text(path)
        _refuse_other_tools(text)
        space = _space_from(*_parse(text))
    except BadInputError as error:
        raise BadInputError(f"Search space {printable(str(path))}: {error}") from None
    space._source_text = text
    return space


def _own_files() -> dict[str, Path]:
    # An installed wheel has the folder beside the package; a checkout has it beside `src`.
    here = Path(__file__).resolve()
    folders = (here.parents[2] / "search_spaces", here.parents[3] / "search_spaces")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _own_file(name: str) -> Path:
    own = _own_files()
    if name not in own:
        raise BadInputError(
            f"There is no search space named {shown(name)}{did_you_mean(name, own)}. "
            f"Available: {', '.join(own)}. A file of your own is given by its path, such as ./my_space.yaml."
        )
    return own[name]


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            own = ", ".join(_own_files())
            raise BadInputError(f"found no regular file there; allowed: the path of a YAML file, or a name: {own}")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadInputError(f"cannot be read: {error.__class__.__name__}; allowed: a readable YAML file") from error
    if len(raw) > MAX_BYTES:
        raise BadInputError(f"found more than {MAX_BYTES} bytes; allowed: at most {MAX_BYTES}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(f"found a byte that is not UTF-8 at offset {error.start}; allowed: UTF-8 text") from error


def _refuse_other_tools(text: str) -> None:
    if re.search(OWN_SECTION, text, re.MULTILINE):
        return
    for tool, pattern in OTHER_TOOLS.items():
        if re.search(pattern, text, re.MULTILINE):
            raise BadInputError(f"found {tool}; allowed: {_own_form()}")


def _own_form() -> str:
    return f"a search space of this project. Write one like this (docs/spaces.md explains it):{EXAMPLE}"


def _parse(text: str) -> tuple[object, list[str]]:
    """Turn YAML into mappings, lists, numbers, booleans and text; return it, and the faults of its names.

    Anything that can hide things in a file is refused: tags, anchors, aliases, duplicate names, invisible characters.
    """
    _require_visible(text, "the file")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # Not only errors of YAML: PyYAML lets chr() and int() fail on absurd escapes and version numbers.
        line, problem = _line(getattr(error, "problem_mark", None)), getattr(error, "problem", None) or error
        raise BadInputError(f"found invalid YAML{line}: {printable(str(problem))}") from error
    faults: list[str] = []
    return None if node is None else _plain(node, "", faults), faults


class _Loader(yaml.BaseLoader):
    """A loader of nodes that refuses what could expand, recurse or name a Python object, before it does."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = _line(event.start_mark)
        if getattr(event, "anchor", None) is not None:
            raise BadInputError(f"found an anchor or alias ({printable(event.anchor)}){line}; allowed: plain values")
        if getattr(event, "tag", None) is not None:
            raise BadInputError(f"found a tag ({printable(str(event.tag))}){line}; allowed: plain values")
        if self.depth >= MAX_DEPTH:
            raise BadInputError(f"found more than {MAX_DEPTH} levels{line}; allowed: {MAX_DEPTH}")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _plain(node: yaml.Node, place: str, faults: list[str]) -> object:
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, place, faults) for item in node.value]
    if isinstance(node, yaml.ScalarNode):
        _require_visible(node.value, place or "the file")
        return node.value if node.style else _unquoted(node.value)
    plain: dict[str, object] = {}
    for key_node, value_node in node.value:
        key = _plain(key_node, place, faults)
        line = _line(key_node.start_mark)
        if not isinstance(key, str):
            faults.append(f"{place or 'top level'}: found {shown(key)} as a name{line}; allowed: a text")
            continue
        inner = f"{place}.{printable(key)}" if place else printable(key)
        if key in plain:
            faults.append(f"{inner}: found twice{line}; allowed: once")
        plain[key] = _plain(value_node, inner, faults)
    return plain


def _unquoted(text: str) -> object:
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if FLOAT.fullmatch(text) else text


def _require_visible(text: str, place: str) -> None:
    for offset, character in enumerate(text):
        if character not in "\n\r\t" and unicodedata.category(character) in INVISIBLE:
            found = f"the invisible character U+{ord(character):04X} at offset {offset}"
            raise BadInputError(f"{place}: found {found}; allowed: visible text")


def _line(mark: object) -> str:
    return f" in line {mark.line + 1}" if isinstance(mark, yaml.Mark) else ""


def _space_from(data: object, faults: list[str]) -> SearchSpace:
    try:
        if not isinstance(data, dict):
            raise BadInputError(f"found {shown(data)}; allowed: {_own_form()}")
        if not data.keys() & SearchSpace.model_fields.keys():
            names = "\n  ".join([f"found unknown names only ({shown_list(data)})", *faults])
            raise BadInputError(f"{names}; allowed: {_own_form()}")
        space = SearchSpace.model_validate(data)
    except ValidationError as error:
        faults += problems_of(error)
    if not faults:
        return space
    more = len(faults) - MAX_PROBLEMS_SHOWN
    rest = [f"and {more} more"] if more > 0 else []
    raise BadInputError("\n  ".join([*faults[:MAX_PROBLEMS_SHOWN], *rest]))
