"""The settings of a replay, checked before anything is opened or imported."""

import re
from dataclasses import dataclass
from pathlib import Path

from fashion_study.errors import BadInputError
from fashion_study.text import shown

# MLflow shows eight characters of a run's id at least, and a study has at most a million trials.
NUMBER = re.compile(r"[0-9]{1,7}")
RUN_ID = re.compile(r"[0-9a-f]{4,32}")


@dataclass(frozen=True)
class ReplayConfig:
    """A trial by its number, or the run of a trial or of a finalist's repeat by the beginning of its id.

    Without a `study` a number means a trial of the study that was worked on last. `data_dir` is the folder of the
    data set's files.

    Raises:
        BadInputError: what can name neither a trial nor a run, saying what can.
    """

    trial: str
    study: str | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.number is None and not RUN_ID.fullmatch(self.trial):
            raise BadInputError(
                f"{shown(self.trial)} names no trial. Expected a trial's number, such as 3, or the id of a run or at "
                "least its first four characters, such as 9f5fd225. Look them up with python -m experiments.ui."
            )

    @property
    def number(self) -> int | None:
        """Return the trial's number; None where a run is named."""
        return int(self.trial) if NUMBER.fullmatch(self.trial) else None
