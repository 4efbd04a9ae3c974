"""YAML for data alone: tags, aliases and invisible characters, behind which a file can hide things, are refused."""

import re
import unicodedata
from collections.abc import Callable

import yaml

from fashion_study.errors import BadInputError
from fashion_study.text import printable, shown
from fashion_study.trial import ParamValue

MAX_DEPTH = 8


def parse(text: str) -> object:
    """Turn YAML into mappings, lists, numbers, booleans and text; nothing else is let through.

    Raises:
        BadInputError: the text is no YAML, or holds a tag, an alias, a name twice or an invisible character.
    """
    _require_visible(text, "the file")
    try:
        node = yaml.compose(text, Loader=_GuardedLoader)
    except yaml.MarkedYAMLError as error:
        raise BadInputError(
            f"found invalid YAML{_line(error.problem_mark)}: {printable(str(error.problem))}"
        ) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets chr() and int() fail on absurd escapes and version numbers.
        raise BadInputError(f"found invalid YAML: {printable(str(error))}") from error
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
            raise BadInputError(f"found an anchor or alias ({printable(event.anchor)}){line}; allowed: plain values")
        if getattr(event, "tag", None) is not None:
            raise BadInputError(f"found a tag ({printable(str(event.tag))}){line}; allowed: plain values")
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
            raise BadInputError(f"{place or 'top level'}: found {shown(key)} as a name{line}; allowed: a text")
        inner = f"{place}.{printable(key)}" if place else printable(key)
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


def _line(mark: object) -> str:
    return f" in line {mark.line + 1}" if isinstance(mark, yaml.Mark) else ""
