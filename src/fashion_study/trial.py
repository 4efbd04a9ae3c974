"""A trial as coordinator and workers speak of it: what a worker is asked to train, and its answers."""

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fashion_study.errors import StudyError
from fashion_study.text import visible, without_passwords

# Raised when the same seed and parameters train to something else: part of a study's fingerprint.
TRAINING_VERSION = 3
# The number of a study's baseline trial, which is never pruned.
BASELINE_NUMBER = 0
# The most weights of a model that a study trains and a promotion accepts, where nothing else is asked for.
MAX_PARAMETERS = 500_000

ParamValue = int | float | str
# Which seed trains the epochs up to which.
Seeds = tuple[tuple[int, int], ...]

# A frame of a traceback with its lines of code. Some exceptions of TensorFlow's have frames of their own, and say after
# those what is wrong.
LAST_FRAME = re.compile(r"^  File \".*\n(?:    .*\n)*", re.MULTILINE)
CAUSE_LENGTH = 200

# Tags of a result: after which epoch it went on from an earlier trial's checkpoint, and why that could not be had; and
# after which epoch it went on from its own on a machine where something was different.
CONTINUED = "continued_after_epoch"
CONTINUATION_LOST = "continuation_lost"
ENVIRONMENT_CHANGED = "environment_changed"

Filters = Annotated[int, Field(strict=True, ge=1, le=512)]
# What a model averages its probabilities over.
Views = Literal["none", "mirror"]
Convolutions = Annotated[int, Field(strict=True, ge=1, le=2)]


class Hyperparameters(BaseModel):
    """Everything that the shared builder and the fit can vary, with the range of each.

    The defaults are the model of the blog post that this study starts from: 93,322 parameters, RMSprop,
    inverse-time decay of 1e-6 per step, ten epochs in batches of 512. What each of them does: docs/spaces.md.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    filters_1: Filters = 32
    filters_2: Filters = 64
    filters_3: Filters = 64
    convolutions_1: Convolutions = 1
    convolutions_2: Convolutions = 1
    convolutions_3: Convolutions = 1
    padding: Literal["valid", "same"] = "valid"
    poolings: Annotated[int, Field(strict=True, ge=2, le=3)] = 2
    normalization: Literal["none", "batch"] = "none"
    normalization_momentum: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.99
    activation: Literal["relu", "gelu", "silu"] = "relu"
    head: Literal["flatten", "max", "average"] = "flatten"
    dense_units: Annotated[int, Field(strict=True, ge=0, le=4096)] = 64
    dropout: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    learning_rate: Annotated[float, Field(strict=True, gt=0, le=10, allow_inf_nan=False)] = 1e-4
    schedule: Literal["inverse_time", "constant", "one_cycle", "cosine"] = "inverse_time"
    decay: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = 1e-6
    warmup: Annotated[float, Field(strict=True, ge=0, le=0.5)] = 0.0
    optimizer: Literal["rmsprop", "adam", "sgd"] = "rmsprop"
    momentum: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    label_smoothing: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    averaging: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    flip: Literal["none", "random", "alternating"] = "none"
    shift: Annotated[int, Field(strict=True, ge=0, le=8)] = 0
    erasing: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    input_scale: Literal["raw", "unit"] = "raw"
    views: Views = "none"
    batch_size: Annotated[int, Field(strict=True, ge=1, le=65_536)] = 512
    epochs: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 10


class Precision(StrEnum):
    """The arithmetic of the training step; a logged model predicts in float32 whatever trained it."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class TrialState(StrEnum):
    """The state of a trial."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"

    @property
    def is_ended(self) -> bool:
        """Return whether a trial in this state is trained no more."""
        return self not in (TrialState.WAITING, TrialState.RUNNING, TrialState.PAUSED)

    @property
    def is_counted(self) -> bool:
        """Return whether a study's total counts a trial in this state: it has ended, or is paused."""
        return self.is_ended or self is TrialState.PAUSED


class FailReason(StrEnum):
    """The reason why a trial has failed: its own fault, or that it was stopped from outside too often.

    One whose model would be larger than the study allows is infeasible, and was not trained.
    """

    INFEASIBLE = "infeasible"
    DIVERGED = "diverged"
    ERROR = "error"
    TIMEOUT = "timeout"
    OOM = "oom"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class EarlierTrial:
    """A trial from whose checkpoint another one goes on, its run, and its number of epochs.

    `run_id` is None where the trial storage has none. `seeds` says which seed trained the epochs up to which: the
    earlier trial may have gone on from another one itself.
    """

    number: int
    run_id: str | None
    epochs: int
    seeds: Seeds


@dataclass(frozen=True)
class TrialSpec:
    """One attempt at a trial, or at one of a finalist's repeats (from 1; 0 is the trial itself), for a worker to train.

    With `continues` it goes on from an earlier trial's checkpoint up to its own number of epochs; `resumes` is the
    epoch after which it goes on from its own one, 0 for none. `run_id` is its MLflow run, empty while that is not open;
    `supersedes` is the run of an earlier attempt. `was_paused` says that the trial counts already.
    """

    number: int
    attempt: int
    hyperparameters: Hyperparameters
    seed: int
    run_id: str = ""
    precision: Precision = Precision.FLOAT32
    repeat: int = 0
    continues: EarlierTrial | None = None
    supersedes: str | None = None
    resumes: int = 0
    was_paused: bool = False

    @property
    def label(self) -> str:
        """Return what is trained: `trial 007`, `trial 007 repeat 2`."""
        return f"trial {self.number:03d}" + (f" repeat {self.repeat}" if self.repeat else "")

    @property
    def inherited(self) -> int:
        """Return the number of epochs that were an earlier trial's."""
        return 0 if self.continues is None else self.continues.epochs

    @property
    def seeds(self) -> Seeds:
        """Return the seeds of all epochs."""
        return (*(self.continues.seeds if self.continues else ()), (self.seed, self.hyperparameters.epochs))

    @property
    def key(self) -> tuple[int, int]:
        """Identify the attempt: what a superseded attempt sends is ignored."""
        return self.number, self.attempt


@dataclass(frozen=True)
class Epoch:
    """The figures of an epoch. `epoch` counts from 1; `seconds` is training time without validation.

    The train figures are running means over the epoch, as Keras prints them. The validation figures are NaN without
    validation images, and in an epoch that diverged before it ended. Both losses are NaN where the epoch left weights
    that are not finite.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class EpochReport(Epoch):
    """An epoch of an attempt at a trial."""

    number: int
    attempt: int


@dataclass(frozen=True)
class TrialResult:
    """The end of an attempt.

    `objective` is the validation accuracy (0 to 1) of the float32 model after the best epoch, for a complete
    trial only. `metrics` are final metrics by name, ready for the tracking store; `tags` name the logged model, its
    weights and the environment in which it was trained. `seconds` is how long the attempt took, from the moment a
    worker began with it.
    """

    number: int
    attempt: int
    state: TrialState
    epochs_run: int
    objective: float | None = None
    reason: FailReason | None = None
    message: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)

    @property
    def cause(self) -> str:
        """Return the message in a line: of a traceback, the exception after its last frame."""
        line = " ".join(LAST_FRAME.split(without_passwords(self.message))[-1].split()).rstrip(".")
        return visible(line if len(line) <= CAUSE_LENGTH else f"{line[: CAUSE_LENGTH - 1]}…")


@dataclass(frozen=True)
class AttemptLost:
    """An attempt that ended through no fault of its own.

    Its worker died, or the store failed it (`by_store`), or it could not go on from its checkpoint (`by_checkpoint`).
    """

    number: int
    attempt: int
    cause: str
    by_store: bool = False
    by_checkpoint: bool = False


@dataclass(frozen=True)
class DataSource:
    """Verified images: which, and in which folder. `directory` is None for embedded data."""

    name: str
    directory: Path | None
    digest: str
    is_fallback: bool = False


@dataclass(frozen=True)
class WorkerSettings:
    """What is the same for everything that a worker trains; without `records` it only reads the store.

    With `pool` it trains on all images that may be fitted to, without validation. `checkpoints` is the folder of the
    study's checkpoints; without one there are none. The executor limits an attempt to
    `trial_timeout` seconds, from its begin in a worker, and a worker to `worker_memory` bytes. But for the baseline, a
    model of more than `max_parameters` weights is not trained.
    """

    source: DataSource
    limit_train: int | None
    threads: int
    tracking_uri: str
    trial_timeout: float | None = None
    worker_memory: int | None = None
    max_parameters: int | None = None
    records: bool = True
    pool: bool = False
    checkpoints: Path | None = None


@dataclass(frozen=True)
class ProbeOrder:
    """The question how fast a worker's machine trains: in which precision, where that is not known, and what points."""

    precision: Precision | None = None
    points: tuple[Hyperparameters, ...] = ()


@dataclass(frozen=True)
class PointCost:
    """The weights of a point's model, the seconds until it has trained a batch, and those for an image from there on.

    Of a model that would not be trained there are no seconds.
    """

    parameters: int
    start_seconds: float = 0.0
    seconds_per_image: float = 0.0


@dataclass(frozen=True)
class ProbeResult:
    """The faster precision, the images per second measured of each, and what each point costs."""

    precision: Precision
    images_per_second: dict[str, float]
    costs: tuple[PointCost, ...] = ()


@dataclass(frozen=True)
class WorkerStarted:
    """A forked worker's first message."""

    pid: int


@dataclass(frozen=True)
class WorkerReady:
    """A worker's message that it has its libraries and its data, and begins with what it was sent."""


@dataclass(frozen=True)
class WorkerFailed:
    """A worker's message that it cannot begin its work at all (its data or its libraries fail it)."""

    error: StudyError


def trial_seed(study_seed: int, number: int, repeat: int = 0) -> int:
    """Derive a 31-bit seed from (study seed, trial number), well mixed even for neighbouring numbers.

    The repeats of a finalist, counted from 1, have a seed each.
    """
    words = f"{study_seed}/{number}" + (f"/{repeat}" if repeat else "")
    digest = hashlib.blake2b(words.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
