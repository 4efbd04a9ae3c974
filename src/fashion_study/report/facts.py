"""The data that a report shows, read once and without HTML, and what is concluded from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from fashion_study.space.space import Categorical, Parameter, SearchSpace
from fashion_study.statistics import paired_interval, wilson_interval
from fashion_study.store.trials import TrialRecord
from fashion_study.study.finalists import Finalist
from fashion_study.trial import Hyperparameters, ParamValue, TrialState

# Of a range, on its own scale: what lies nearer to a bound than this may well want to go beyond it.
EDGE = 0.02
# A range of two values has nothing but edges.
FEWEST_VALUES = 3
# So far below the best objective a smaller model may lie to be worth a sentence.
NEARLY_BEST = 0.005


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
class Size:
    """The size of a trial's model: its number of weights, and how long it takes for an image."""

    parameters: float
    ms_per_image: float


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
    `sizes` are those of the complete trials' models by trial, as far as their runs say.
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
    sizes: Mapping[int, Size] = field(default_factory=dict)
    importances: Mapping[str, float] = field(default_factory=dict)
    pixels: Mapping[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    pixels_missing: str | None = None

    @property
    def is_running(self) -> bool:
        """Say whether the study's run has not ended yet: it is being trained, or was killed."""
        return self.run_status == "RUNNING"

    @property
    def counted(self) -> int:
        """Count the trials that have ended or are paused, which a budget counts."""
        return sum(record.state.is_counted for record in self.records)

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
        return int(record.params.get("epochs", self.space.max_epochs))


def smallest_nearly_best(facts: StudyFacts) -> TrialRecord | None:
    """Return the trial with the smallest model of those within 0.5 points of the highest objective.

    Of equally small ones it is the best. None where that is the trial with the highest objective itself.
    """
    highest = facts.highest
    if highest is None or highest.objective is None or highest.number not in facts.sizes:
        return None
    near = [
        record
        for record in facts.records
        if record.number in facts.sizes and (record.objective or 0.0) >= highest.objective - NEARLY_BEST
    ]
    smallest = min(near, key=lambda record: facts.sizes[record.number].parameters)
    return None if smallest is highest else smallest


@dataclass(frozen=True)
class Edge:
    """A value at the `side` (lowest, highest) of its parameter's range; `bound` is that end."""

    name: str
    value: ParamValue
    side: str
    bound: ParamValue


@dataclass(frozen=True)
class Savings:
    """The epochs that the pruner saved, of complete, pruned and paused trials; the latter two were `stopped`.

    `highest_stopped` is the highest validation accuracy at which a trial was stopped, with its number.
    """

    stopped: int
    paused: int
    epochs_asked: int
    epochs_saved: int
    highest_stopped: tuple[float, int] | None

    @property
    def share(self) -> float:
        """Return the share of the asked epochs that were not trained."""
        return self.epochs_saved / self.epochs_asked if self.epochs_asked else 0.0


@dataclass(frozen=True)
class Gain:
    """A difference in validation accuracy (0 to 1) with its 95 % interval and the number of images.

    `only_first` and `only_second` count the images that one model alone predicts rightly, None where the runs do not
    name their mistakes: the interval is then that of two independent samples, which is wider as a rule.
    """

    difference: float
    low: float
    high: float
    images: int
    only_first: int | None = None
    only_second: int | None = None


def edges(space: SearchSpace, params: Mapping[str, ParamValue]) -> tuple[Edge, ...]:
    """Return the parameters whose value lies at, or within 2 % of the range of, an end that could be wider.

    Choices have an order only where all are numbers. Ranges of fewer than three values are passed over, and ends beyond
    which a hyperparameter has no legal value.
    """
    found = (_edge(name, space.parameters[name], value) for name, value in params.items() if name in space.parameters)
    return tuple(edge for edge in found if edge is not None and _can_be_wider(edge))


def savings(facts: StudyFacts) -> Savings:
    """Sum up which epochs the pruner kept from being trained."""
    ended = [r for r in facts.records if r.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.PAUSED)]
    stopped = [record for record in ended if record.state is not TrialState.COMPLETE]
    reached = [(record.curve[record.reached], record.number) for record in stopped if record.curve]
    return Savings(
        stopped=len(stopped),
        paused=sum(record.state is TrialState.PAUSED for record in stopped),
        epochs_asked=sum(facts.epochs_asked(record) - record.inherited_epochs for record in ended),
        epochs_saved=sum(facts.epochs_asked(record) - record.reached for record in stopped),
        highest_stopped=max(reached, default=None),
    )


def gain(first: ModelFacts, second: ModelFacts) -> Gain:
    """Compare two models on the validation images, by image where both runs name their mistakes."""
    if first.mistakes is None or second.mistakes is None:
        low, high = _independent(first, second)
        return Gain(first.accuracy - second.accuracy, low, high, first.images)
    only_first, only_second = len(second.mistakes - first.mistakes), len(first.mistakes - second.mistakes)
    low, high = paired_interval(only_first, only_second, first.images)
    return Gain(first.accuracy - second.accuracy, low, high, first.images, only_first, only_second)


def _edge(name: str, parameter: Parameter, value: ParamValue) -> Edge | None:
    if isinstance(parameter, Categorical):
        numbers = sorted(choice for choice in parameter.choices if isinstance(choice, int | float))
        if len(numbers) < max(len(parameter.choices), FEWEST_VALUES) or value not in (numbers[0], numbers[-1]):
            return None
        return Edge(name, value, "lowest" if value == numbers[0] else "highest", value)
    width = parameter.high - parameter.low
    values = math.inf if parameter.step is None and width else round(width / (parameter.step or 1)) + 1
    if not isinstance(value, int | float) or values < FEWEST_VALUES:
        return None
    scale = math.log if parameter.log else float
    low, high, position = (scale(number) for number in (parameter.low, parameter.high, value))
    near = EDGE * (high - low)
    if position - low <= near:
        return Edge(name, value, "lowest", parameter.low)
    return Edge(name, value, "highest", parameter.high) if high - position <= near else None


def _can_be_wider(edge: Edge) -> bool:
    step = 1 if isinstance(edge.bound, int) else 1e-9
    beyond = float(edge.bound) + (step if edge.side == "highest" else -step)
    try:
        Hyperparameters.model_validate({edge.name: type(edge.bound)(beyond)})
    except ValidationError:
        return False
    return True


def _independent(first: ModelFacts, second: ModelFacts) -> tuple[float, float]:
    """Join two Wilson intervals into one of their difference.

    Newcombe, Interval estimation for the difference between independent proportions, Statistics in Medicine 17, 1998,
    method 10.
    """
    difference = first.accuracy - second.accuracy
    (low_1, high_1), (low_2, high_2) = (wilson_interval(model.right, model.images) for model in (first, second))
    down = math.hypot(first.accuracy - low_1, high_2 - second.accuracy)
    up = math.hypot(high_1 - first.accuracy, second.accuracy - low_2)
    return difference - down, difference + up
