"""What runs logged, checked before a page rests on it: whoever can write a store can write anything into it."""

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from fashion_study.report.facts import ConfusedPair, Finals

STUDY_COMMAND = ["python", "-m", "experiments.run_study"]
# More than there are images of anything here, and few enough to be added up.
Count = Annotated[int, Field(ge=0, le=10**9)]
Text = Annotated[str, Field(max_length=200)]


class _Logged(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Confusion(_Logged):
    """Hold a confusion matrix as it is logged: the true classes are the rows."""

    classes: Annotated[tuple[Text, ...], Field(min_length=2, max_length=1_000)]
    counts: tuple[tuple[Count, ...], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if [len(row) for row in self.counts] != [len(self.classes)] * len(self.classes):
            raise ValueError("expected a row and a column for each class")
        if len(set(self.classes)) < len(self.classes) or not any(map(any, self.counts)):
            raise ValueError("expected classes of different names, and images")
        return self


class Confused(_Logged):
    """Hold the most confused pairs as they are logged, and the indices of all mistakes where those are named."""

    pairs: tuple[ConfusedPair, ...] = ()
    mistakes: frozenset[Count] | None = None


def read_json(path: Path) -> Any:
    """Read a JSON file without numbers that are none.

    Raises:
        ValueError: it is no JSON, or holds NaN or an infinity.
    """
    return json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)


def read_finals(found: Any) -> Finals | None:
    """Return the finalists, None where there are none.

    Raises:
        ValueError: they are not what a study logs.
    """
    finals = TypeAdapter(Finals).validate_python(found)
    for finalist in finals.finalists:
        if len(finalist.objectives) != len(finalist.run_ids):
            raise ValueError("expected an objective for each repeat of a finalist")
    return finals if finals.finalists else None


def read_command(settings: Mapping[str, str]) -> str:
    """Return the command that asks for a study again, quoted so that a shell sees one command and no more.

    Raises:
        ValueError: it is not a command of this project.
    """
    words = shlex.split(settings["command"])
    if words[:3] != STUDY_COMMAND or "--trials" not in words[:-1]:
        raise ValueError(f"expected a command that begins with {' '.join(STUDY_COMMAND)}")
    return shlex.join(words)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"expected finite numbers, found {text[:20]}")
    return value
