"""A search space as KerasTuner's hyperparameters, for its oracles and its tuners."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from fashion_study.space.space import Categorical, Float, Int, Parameter, SearchSpace
from fashion_study.trial import ParamValue

if TYPE_CHECKING:
    from keras_tuner import HyperParameters


def declare(hyperparameters: "HyperParameters", space: SearchSpace, names: Iterable[str] | None = None) -> None:
    """Declare the parameters of a space, or those in `names`, with the baseline's values as their defaults."""
    for name in space.parameters if names is None else names:
        default = space.baseline[name]
        match space.parameters[name]:
            case Int(log=True) as spec:
                hyperparameters.Int(name, spec.low, spec.high, sampling="log", default=default)
            case Int() as spec:
                hyperparameters.Int(name, spec.low, spec.high, step=spec.step, default=default)
            case Float(step=float(step)) as spec:
                # KerasTuner counts the steps by a division, whose rounding could lose the last one: half a step more.
                hyperparameters.Float(name, spec.low, spec.high + step / 2, step=step, default=default)
            case Float() as spec:
                sampling = "log" if spec.log else "linear"
                hyperparameters.Float(name, spec.low, spec.high, sampling=sampling, default=default)
            case Categorical() as spec:
                choices = of_one_type(spec.choices)
                default = choices[spec.choices.index(default)]
                hyperparameters.Choice(name, choices, ordered=False, default=default)


def values_within(space: SearchSpace, values: Mapping[str, ParamValue]) -> dict[str, ParamValue]:
    """Return KerasTuner's values as the space's own, in its order and inside its ranges.

    KerasTuner's arithmetic exceeds the upper end of a logarithmic range by one, and of a stepped one by a rounding.
    """
    return {name: _within(spec, values[name]) for name, spec in space.parameters.items() if name in values}


def of_one_type(values: Sequence[ParamValue]) -> list[ParamValue]:
    """Return integers among floats as floats: KerasTuner takes choices of one type only."""
    return list(values) if len(set(map(type, values))) == 1 else [float(value) for value in values]


def _within(spec: Parameter, value: ParamValue) -> ParamValue:
    match spec:
        case Int():
            return min(max(int(value), spec.low), spec.high)
        case Float():
            return min(max(float(value), spec.low), spec.high)
        case Categorical():
            return next(choice for choice in spec.choices if choice == value)
