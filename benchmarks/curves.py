"""The table of recorded learning curves: one file that grows by a configuration at a time and survives a kill.

Each entry is a gzip member of its own with one line of JSON: first the design, then a session for each start of the
recorder (which machine, which commit, when), and the curves behind the session that recorded them. `zcat` reads it.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fashion_study.errors import BadInputError, DataError
from fashion_study.space.file import load_space
from fashion_study.space.space import SearchSpace
from fashion_study.trial import ParamValue

TABLE = Path(__file__).with_name("curves.jsonl.gz")


@dataclass(frozen=True)
class Curve:
    """One configuration, trained to the design's last epoch or to where its loss diverged.

    `accuracy` and `loss` are those of the validation images after each epoch; `seconds` is the processor time of each
    epoch on one thread, validation included. A diverged one has one entry more there: the epoch in which it diverged.
    """

    place: int
    params: dict[str, ParamValue]
    seed: int
    accuracy: tuple[float, ...]
    loss: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def is_diverged(self) -> bool:
        """Say whether the loss became NaN or infinite."""
        return len(self.seconds) > len(self.accuracy)


@dataclass(frozen=True)
class Design:
    """The settings that make curves comparable, and so must not change when a table is continued.

    The training's version and its precision are not here but with each session: what trains to other last bits is as
    good as another seed.
    """

    space: str
    space_digest: str
    epochs: int
    data_digest: str
    train_images: int
    split_digest: str
    seed: int


@dataclass(frozen=True)
class CurveTable:
    """The curves that are recorded so far, in the order of the design."""

    design: Design
    sessions: tuple[Mapping[str, Any], ...]
    curves: tuple[Curve, ...]

    def best_from(self, epochs: int) -> float:
        """Return the highest accuracy after at least so many epochs: what trials of no fewer can find."""
        return max(value for curve in self.curves for value in curve.accuracy[epochs - 1 :])


def read_table(path: Path) -> CurveTable:
    """Read a table as far as it is whole: a last entry that a kill has cut off does not count.

    Raises:
        DataError: there is no table, or no curve in it yet.
    """
    if not path.exists():
        raise DataError(
            f"{path}: found no file, expected recorded curves. Record some: python -m benchmarks.record_curves"
        )
    entries = [entry for entry, _ in _entries(path.read_bytes())]
    designs = [Design(**entry["design"]) for entry in entries if "design" in entry]
    curves = [_curve(entry["curve"]) for entry in entries if "curve" in entry]
    if not designs or not curves:
        raise DataError(f"{path}: found {len(curves)} curves. Record some: python -m benchmarks.record_curves")
    sessions = tuple(entry["session"] for entry in entries if "session" in entry)
    return CurveTable(designs[0], sessions, tuple(sorted(curves, key=lambda curve: curve.place)))


def space_file(path: Path) -> Path:
    """Return the file with the search space of a table, which lies beside it: `curves.yaml` of `curves.jsonl.gz`."""
    return path.with_name(f"{path.name.partition('.')[0]}.yaml")


def space_of(path: Path, design: Design) -> SearchSpace:
    """Return the search space of a table.

    Raises:
        BadInputError: there is no file, or it has changed since.
    """
    space = load_space(str(space_file(path)))
    if space.digest != design.space_digest:
        raise BadInputError(
            f"{space_file(path)}: the space {space.name!r} has changed since the curves of {path.name} were recorded. "
            "Restore the committed file, or record the curves anew."
        )
    return space


def recorded_sessions(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Return the sessions of a table, the last one last; none where there is no table."""
    packed = path.read_bytes() if path.exists() else b""
    return tuple(entry["session"] for entry, _ in _entries(packed) if "session" in entry)


def continue_table(path: Path, design: Design) -> set[int]:
    """Begin a table or take one up again: cut off what a kill left half written; return the places that are recorded.

    Raises:
        DataError: the file holds a table of another design.
    """
    packed = path.read_bytes() if path.exists() else b""
    entries = list(_entries(packed))
    whole = entries[-1][1] if entries else 0
    if whole < len(packed):
        os.truncate(path, whole)
    if not entries:
        _append(path, {"design": asdict(design)})
        return set()
    found = entries[0][0].get("design", {})
    if found != asdict(design):
        differing = [name for name, value in asdict(design).items() if found.get(name) != value]
        raise DataError(
            f"{path}: found a table that differs in {', '.join(differing)}; expected one of the same design. "
            "Name another file with --output."
        )
    return {entry["curve"]["place"] for entry, _ in entries if "curve" in entry}


def append_session(path: Path, attrs: Mapping[str, Any]) -> None:
    """Write down on what the curves that follow are recorded."""
    _append(path, {"session": dict(attrs)})


def append_curve(path: Path, curve: Curve) -> None:
    """Write down one configuration; when this returns, a kill or a power cut does not undo it."""
    _append(path, {"curve": asdict(curve)})


def _curve(entry: Mapping[str, Any]) -> Curve:
    series = {name: tuple(entry[name]) for name in ("accuracy", "loss", "seconds")}
    return Curve(place=entry["place"], params=entry["params"], seed=entry["seed"], **series)


def _entries(packed: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each whole entry and where it ends."""
    end = 0
    while end < len(packed):
        member = zlib.decompressobj(wbits=31)  # gzip
        try:
            line = member.decompress(packed[end:])
        except zlib.error:
            return
        if not member.eof:
            return
        end = len(packed) - len(member.unused_data)
        yield json.loads(line), end


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    line = json.dumps(entry, separators=(",", ":")) + "\n"
    with path.open("ab") as file:
        file.write(gzip.compress(line.encode(), mtime=0))
        file.flush()
        os.fsync(file.fileno())
