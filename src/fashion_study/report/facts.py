"""The data that a report shows: frozen, read once, without HTML."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from fashion_study.space.space import SearchSpace
from fashion_study.store.trials import TrialRecord
from fashion_study.study.finalists import Finalist
from fashion_study.trial import TrialState


@dataclass(frozen=True)
class ConfusedPair:
    """The images of the class `true` that were taken for `predicted`, as a number and as a share of that class.

    `examples` are indices of validation images.
    """

    true: str
    predicted: str
    count: int
    share: float
    examples: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """The results of one run's model on the validation images.

    `confusion` (classes, classes) counts images: the true classes are the rows. `mistakes` are the indices of
    the images predicted wrongly, None where the run does not name them.
    """

    run_id: str
    trial: int
    repeat: int | None
    metrics: Mapping[str, float]
    classes: tuple[str, ...]
    confusion: npt.NDArray[np.int64]
    mistakes: frozenset[int] | None = None
    pairs: tuple[ConfusedPair, ...] = ()

    @property
    def images(self) -> int:
        """Count the validation images."""
        return int(self.confusion.sum())

    @property
    def right(self) -> int:
        """Count the validation images predicted rightly."""
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        """Return the share of right predictions, 0 to 1."""
        return self.right / self.images

    @property
    def recall(self) -> dict[str, float]:
        """Return the recall of each class, 0 for a class without images."""
        totals = np.maximum(self.confusion.sum(axis=1), 1)
        return dict(zip(self.classes, (np.diag(self.confusion) / totals).tolist(), strict=True))


@dataclass(frozen=True)
class Finals:
    """The trials that were trained again, the best first, and the model that won.

    `note` says why they are fewer than what a user wanted.
    """

    finalists: tuple[Finalist, ...]
    winner: int | None
    version_run: str | None
    note: str | None


@dataclass(frozen=True)
class Reference:
    """The model that the best one's confusion matrix is compared with, and the reason for this choice."""

    model: ModelFacts
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class StudyFacts:
    """Everything that a report shows of a study.

    `records` are ranked, the best first; `trials` is the total asked for. `settings` are the tags and `asked` the
    parameters of the study's run. `best` is the model that the study ends with: of a repeat where there are finalists.
    `importances` sum to 1, empty where there are too few complete trials. `pixels` are the examples of the best
    model's confused pairs by their index, each (height, width, channels); `pixels_missing` says why there are none.
    """

    name: str
    run_id: str
    run_status: str
    began: datetime
    written: datetime
    space: SearchSpace
    records: tuple[TrialRecord, ...]
    trials: int
    settings: Mapping[str, str]
    asked: Mapping[str, str]
    image_counts: Mapping[str, int] = field(default_factory=dict)
    ended: datetime | None = None
    best: ModelFacts | None = None
    baseline: ModelFacts | None = None
    finals: Finals | None = None
    reference: Reference | None = None
    importances: Mapping[str, float] = field(default_factory=dict)
    pixels: Mapping[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    pixels_missing: str | None = None

    @property
    def is_running(self) -> bool:
        """Say whether the study's run has not ended yet: it is being trained, or was killed."""
        return self.run_status == "RUNNING"

    @property
    def counted(self) -> int:
        """Count the trials that have ended, which a budget counts."""
        return sum(record.state.is_ended for record in self.records)

    @property
    def complete(self) -> int:
        """Count the complete trials."""
        return sum(record.state is TrialState.COMPLETE for record in self.records)

    @property
    def best_record(self) -> TrialRecord | None:
        """Return the trial of the best model; without finalists the one with the highest objective."""
        return None if self.best is None else self.record(self.best.trial)

    @property
    def highest(self) -> TrialRecord | None:
        """Return the complete trial with the highest objective."""
        return next((record for record in self.records if record.objective is not None), None)

    def record(self, number: int) -> TrialRecord | None:
        """Return a trial by its number."""
        return next((record for record in self.records if record.number == number), None)

    def epochs_asked(self, record: TrialRecord) -> int:
        """Return after how many epochs a trial ends if nothing stops it, those that it has taken over included."""
        return int(record.params.get("epochs", self.space.fixed.get("epochs", 0)))
