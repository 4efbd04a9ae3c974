"""The conclusions of a report: edges of the space, epochs saved by the pruner, the gain of the best model."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from fashion_study.report.facts import ModelFacts, StudyFacts
from fashion_study.space.space import Categorical, Float, Int, Parameter, SearchSpace
from fashion_study.statistics import paired_interval, wilson_interval
from fashion_study.trial import ParamValue, TrialState

# Of a range, on its own scale: what lies nearer to a bound than this may well want to go beyond it.
EDGE = 0.02
# A range of two values has nothing but edges.
FEWEST_VALUES = 3


@dataclass(frozen=True)
class Edge:
    """A value at the `side` (lowest, highest) of its parameter's range; `bound` is that end."""

    name: str
    value: ParamValue
    side: str
    bound: ParamValue


@dataclass(frozen=True)
class Savings:
    """The epochs that pruning saved, of complete and pruned trials.

    `ended_at` counts pruned trials by the epoch after which they ended. `highest_pruned` is the highest validation
    accuracy at which a trial was pruned, with its number.
    """

    pruned: int
    epochs_asked: int
    epochs_saved: int
    ended_at: Mapping[int, int]
    highest_pruned: tuple[float, int] | None

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

    @property
    def is_paired(self) -> bool:
        """Say whether the interval compares image by image."""
        return self.only_first is not None


def edges(space: SearchSpace, params: Mapping[str, ParamValue]) -> tuple[Edge, ...]:
    """Return the parameters whose value lies at, or within 2 % of the range of, an end of what they may take.

    Choices have an order only where all are numbers. Ranges of fewer than three values are passed over.
    """
    found = (_edge(name, space.parameters[name], value) for name, value in params.items() if name in space.parameters)
    return tuple(edge for edge in found if edge is not None)


def savings(facts: StudyFacts) -> Savings:
    """Sum up which epochs the pruner kept from being trained."""
    ended = [r for r in facts.records if r.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    pruned = [record for record in ended if record.state is TrialState.PRUNED]
    reached = [(record.curve[max(record.curve)], record.number) for record in pruned if record.curve]
    return Savings(
        pruned=len(pruned),
        epochs_asked=sum(facts.epochs_asked(record) - record.inherited_epochs for record in ended),
        epochs_saved=sum(facts.epochs_asked(record) - record.reached for record in pruned),
        ended_at=dict(sorted(Counter(record.reached for record in pruned).items())),
        highest_pruned=max(reached, default=None),
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
        return _edge_of_choices(name, parameter, value)
    if not isinstance(value, int | float) or _values(parameter) < FEWEST_VALUES:
        return None
    scale = math.log if parameter.log else float
    low, high, position = (scale(number) for number in (parameter.low, parameter.high, value))
    near = EDGE * (high - low)
    if position - low <= near:
        return Edge(name, value, "lowest", parameter.low)
    if high - position <= near:
        return Edge(name, value, "highest", parameter.high)
    return None


def _edge_of_choices(name: str, parameter: Categorical, value: ParamValue) -> Edge | None:
    numbers = sorted(choice for choice in parameter.choices if isinstance(choice, int | float))
    if len(numbers) < max(len(parameter.choices), FEWEST_VALUES) or value not in (numbers[0], numbers[-1]):
        return None
    return Edge(name, value, "lowest" if value == numbers[0] else "highest", value)


def _values(parameter: Int | Float) -> float:
    if parameter.low == parameter.high:
        return 1
    if parameter.step is None:
        return math.inf
    return round((parameter.high - parameter.low) / parameter.step) + 1


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
