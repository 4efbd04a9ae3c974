"""A search space as KerasTuner's hyperparameters, for its oracles and its tuners."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fashion_study.space.space import Categorical, Float, Int, Parameter, SearchSpace
from fashion_study.trial import ParamValue

if TYPE_CHECKING:
    from keras_tuner import HyperParameters


def declare(hyperparameters: "HyperParameters", space: SearchSpace, names: Iterable[str] | None = None) -> None:
    """Declare the parameters of a space, or those in `names`, with the baseline's values as their defaults."""
    for name in space.parameters if names is None else names:
        _declare(hyperparameters, name, space.parameters[name], space.baseline[name])


def declare_axes(hyperparameters: "HyperParameters", axes: Mapping[str, Iterable[ParamValue]]) -> None:
    """Declare lists of values for a grid search, which takes them in order."""
    for name, values in axes.items():
        hyperparameters.Choice(name, _of_one_type(values), ordered=False)


def values_within(space: SearchSpace, values: Mapping[str, ParamValue]) -> dict[str, ParamValue]:
    """Return KerasTuner's values as the space's own, in its order and inside its ranges.

    KerasTuner's arithmetic exceeds the upper end of a logarithmic range by one, and of a stepped one by a rounding.
    """
    return {name: _within(spec, values[name]) for name, spec in space.parameters.items() if name in values}


def _declare(hyperparameters: "HyperParameters", name: str, spec: Parameter, default: ParamValue) -> None:
    match spec:
        case Int(log=True):
            hyperparameters.Int(name, spec.low, spec.high, sampling="log", default=default)
        case Int():
            hyperparameters.Int(name, spec.low, spec.high, step=spec.step, default=default)
        case Float(step=float(step)):
            # KerasTuner counts the steps by a division, whose rounding could lose the last one: half a step more.
            hyperparameters.Float(name, spec.low, spec.high + step / 2, step=step, default=default)
        case Float():
            sampling = "log" if spec.log else "linear"
            hyperparameters.Float(name, spec.low, spec.high, sampling=sampling, default=default)
        case Categorical():
            choices = _of_one_type(spec.choices)
            default = choices[spec.choices.index(default)]
            hyperparameters.Choice(name, choices, ordered=False, default=default)


def _of_one_type(values: Iterable[ParamValue]) -> list[ParamValue]:
    """Return integers among floats as floats: KerasTuner takes choices of one type only."""
    listed = list(values)
    if len({type(value) for value in listed}) > 1:
        return [float(value) for value in listed]
    return listed


def _within(spec: Parameter, value: ParamValue) -> ParamValue:
    match spec:
        case Int():
            return min(max(int(value), spec.low), spec.high)
        case Float():
            return min(max(float(value), spec.low), spec.high)
        case Categorical():
            return next(choice for choice in spec.choices if choice == value)
