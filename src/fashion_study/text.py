"""How found values are shown: short in messages, harmless on a terminal and in a spreadsheet."""

import difflib
import re
import traceback
from collections.abc import Iterator, Mapping

# From the scheme to the last @ before the host: a password may hold an @ of its own.
USER_INFO = re.compile(r"(?<=://)[^/\s'\"]*@")
# `multiprocessing.Connection` writes a message of up to 16 KiB in one piece, and the kernel passes that on whole or
# not at all. A worker that is stopped in the middle of a longer one would leave the coordinator waiting for the rest.
MAX_TRACEBACK = 8 * 1024


def did_you_mean(name: str, known: Mapping[str, object]) -> str:
    """Ask whether the nearest known name was meant; empty where none is near."""
    close = difflib.get_close_matches(name[:64], known, n=1)
    return f" (did you mean {printable(close[0])}?)" if close else ""


def shown_list(values: Iterator[object] | Mapping[str, object] | tuple[object, ...]) -> str:
    """Write values side by side, cut to a line or two."""
    text = ", ".join(repr(value) for value in values)
    return text if len(text) <= 200 else text[:199] + "…"


def shown(value: object) -> str:
    """Write a value as Python would, cut to a line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # Nested deeper, or a number longer, than Python writes out.
        text = f"<{type(value).__name__} too large to show>"
    return text if len(text) <= 80 else text[:79] + "…"


def printable(text: str) -> str:
    """Write text with nothing in it that could move a cursor, cut to a few lines."""
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= 300 else shown[:299] + "…"


def visible(text: str) -> str:
    """Write every character that could move a cursor or turn the order of words by its number; cut nothing."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def spreadsheet_cell(value: object) -> object:
    """Keep a text from being a formula where a spreadsheet opens it; numbers stay numbers.

    An apostrophe goes before what begins like one (after OWASP's page on CSV injection), and characters that could
    end a cell or a row are written by their numbers.
    """
    if not isinstance(value, str):
        return value
    return visible(f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value)


def without_passwords(text: str) -> str:
    """Return a text without the names and passwords of the addresses in it."""
    return USER_INFO.sub("", text)


def truncated_traceback() -> str:
    """Return the traceback of the exception being handled, with its middle left out where it takes more than 8 KiB."""
    text = traceback.format_exc()
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) <= MAX_TRACEBACK:
        return text
    head, tail = encoded[: MAX_TRACEBACK // 4], encoded[-MAX_TRACEBACK // 2 :]
    left_out = f"\n... {len(encoded) - len(head) - len(tail):,} bytes are left out here ...\n"
    return head.decode(errors="ignore") + left_out + tail.decode(errors="ignore")
