"""The files with what trainings need to go on: one for each trial that is being trained, replaced after every epoch.

A file is a SHA-256 sum of the rest, a line of JSON (whose checkpoint it is, where and how far it was trained) and the
arrays. The coordinator reads the line, and the worker that goes on from the file checks and loads the whole.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fashion_study.errors import StudyError
from fashion_study.trial import TRAINING_VERSION, Epoch, Hyperparameters, TrialSpec, WorkerSettings

SUFFIX = ".checkpoint"
# Between the sum, the line and the arrays.
END = b"\n"


class UnusableCheckpointError(StudyError):
    """A checkpoint that is missing, torn, or of another training."""


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself: whose it is, in what environment its last epoch was trained, and its curve.

    `arrays` are the types and shapes of what follows: as many weights, and variables of the optimizer, as `counts`
    says, then the best weights.
    """

    identity: Mapping[str, Any]
    environment: Mapping[str, str]
    epochs: Sequence[Epoch]
    best_epoch: int
    arrays: Sequence[tuple[str, Sequence[int]]]
    counts: tuple[int, int]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a study, in a folder, of trainings on images with this digest and limit.

    Those that no training uses now, but a later one may, are to take no more than `disk` bytes.
    """

    folder: Path
    data_digest: str
    limit_train: int | None
    disk: float = field(default=math.inf, kw_only=True)

    @classmethod
    def of(cls, settings: WorkerSettings) -> "Checkpoints | None":
        """Return the checkpoints that a worker with these settings writes, None where it writes none."""
        if settings.checkpoints is None:
            return None
        return cls(settings.checkpoints, settings.source.digest, settings.limit_train)

    def path(self, label: str) -> Path:
        """Return the file of a trial, or of a finalist's repeat."""
        return _path(self.folder, label)

    def identity(self, spec: TrialSpec) -> dict[str, Any]:
        """Return what a checkpoint must agree in, so that an attempt with the same run can go on from it."""
        return {
            "run": spec.run_id,
            "parameters": spec.hyperparameters.model_dump(mode="json"),
            "seed": spec.seed,
            "precision": spec.precision.value,
            "data": self.data_digest,
            "limit_train": self.limit_train,
            "training_version": TRAINING_VERSION,
        }

    def find(self, spec: TrialSpec) -> Header | None:
        """Return the header of the checkpoint from which an attempt with this run can go on, if there is one."""
        with suppress(UnusableCheckpointError):
            header = read_header(self.path(spec.label))
            return header if header.identity == self.identity(spec) else None
        return None

    def reached(self, spec: TrialSpec) -> int:
        """Return the epoch after which the training of this run can go on, 0 where it would begin anew."""
        return epoch_reached(self.folder, spec.label, spec.run_id)

    def discard(self, label: str) -> None:
        """Delete the checkpoint of a training that needs it no more."""
        self.path(label).unlink(missing_ok=True)

    def size(self, label: str) -> int:
        """Return the bytes that the checkpoint of a training takes, 0 for none."""
        path = self.path(label)
        return path.stat().st_size if path.exists() else 0

    def sweep(self, ended: Iterable[str] = (), *, repeats: bool = False) -> None:
        """Delete what a kill has left: files that were being written, the checkpoints of these `ended` trials.

        With `repeats` also those of all finalists' repeats.
        """
        unneeded = [self.path(label) for label in ended]
        of_repeats = self.folder.glob(f"*-repeat-*{SUFFIX}") if repeats else ()
        for path in (*self.folder.glob(f"*{SUFFIX}.*"), *unneeded, *of_repeats):
            path.unlink(missing_ok=True)


def epoch_reached(folder: Path, label: str, run_id: str | None) -> int:
    """Return the epoch after which the training of a run can go on, 0 where it would begin anew."""
    with suppress(UnusableCheckpointError):
        header = read_header(_path(folder, label))
        return header.epochs[-1].epoch if header.identity.get("run") == run_id else 0
    return 0


def write(path: Path, header: Header, arrays: Sequence[memoryview]) -> None:
    """Replace a checkpoint as a whole: whenever the machine stops, the old or the new one is there."""
    line = json.dumps(vars(header) | {"epochs": [vars(epoch) for epoch in header.epochs]}).encode() + END
    total = hashlib.sha256(line)
    for array in arrays:
        total.update(array)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with new.open("wb") as file:
            file.writelines((total.hexdigest().encode(), END, line, *arrays))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        new.unlink(missing_ok=True)  # On a full disk it would take what is left.
        raise
    new.replace(path)


def read_header(path: Path) -> Header:
    """Read what a checkpoint says of itself; the arrays after it may be torn.

    Raises:
        UnusableCheckpointError: there is no such file, or it is no checkpoint.
    """
    try:
        with path.open("rb") as file:
            file.readline()
            return _header(file.readline())
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unusable(path, "cannot be read") from error


def read(path: Path) -> tuple[Header, bytes]:
    """Read a checkpoint.

    Raises:
        UnusableCheckpointError: there is no such file, or it is not as it was written.
    """
    try:
        total, line, arrays = path.read_bytes().split(END, 2)
        header = _header(line)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unusable(path, "cannot be read") from error
    if hashlib.sha256(line + END + arrays).hexdigest().encode() != total:
        raise _unusable(path, "is not as it was written")
    return header, arrays


def _header(line: bytes) -> Header:
    fields = json.loads(line)
    if not (fields["epochs"] and isinstance(fields["identity"], dict)):
        raise ValueError("no epoch, or nobody's")
    # A hyperparameter that a checkpoint lacks, because it came later, had its default.
    parameters = Hyperparameters(**fields["identity"]["parameters"]).model_dump(mode="json")
    return Header(
        **fields
        | {
            "identity": fields["identity"] | {"parameters": parameters},
            "epochs": tuple(Epoch(**epoch) for epoch in fields["epochs"]),
        }
    )


def _path(folder: Path, label: str) -> Path:
    return folder / f"{label.replace(' ', '-')}{SUFFIX}"


def _unusable(path: Path, what: str) -> UnusableCheckpointError:
    return UnusableCheckpointError(f"the checkpoint {path} {what}")
