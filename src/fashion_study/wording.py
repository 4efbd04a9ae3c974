"""How found values are shown in messages: short, and harmless on a terminal."""

import difflib
from collections.abc import Iterator, Mapping


def did_you_mean(name: str, known: Mapping[str, object]) -> str:
    """Ask whether the nearest known name was meant; empty where none is near."""
    close = difflib.get_close_matches(name[:64], known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def shown_list(values: Iterator[object] | Mapping[str, object] | tuple[object, ...]) -> str:
    """Write values side by side, cut to a line or two."""
    text = ", ".join(repr(value) for value in values)
    return text if len(text) <= 200 else text[:199] + "…"


def shown(value: object) -> str:
    """Write a value as Python would, cut to a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def printable(text: str) -> str:
    """Write text with nothing in it that could move a cursor, cut to a few lines."""
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= 300 else shown[:299] + "…"
