"""Points of a search space, as every engine writes them into the trial storage."""

from collections.abc import Mapping

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from fashion_study.space.space import Categorical, Float, Int, Parameter, SearchSpace
from fashion_study.trial import ParamValue

Point = dict[str, ParamValue]
Key = tuple[tuple[str, ParamValue], ...]


def key_of(params: Mapping[str, ParamValue]) -> Key:
    """Name a point by its values, floats up to what rounding makes of a step."""
    return tuple(
        (name, float(f"{value:.12g}") if isinstance(value, float) else value) for name, value in sorted(params.items())
    )


def distributions_of(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Say in Optuna's words what each parameter of a space can be."""
    return {name: _distribution(spec) for name, spec in space.parameters.items()}


def _distribution(spec: Parameter) -> BaseDistribution:
    match spec:
        case Int():
            return IntDistribution(spec.low, spec.high, log=spec.log, step=spec.step)
        case Float():
            return FloatDistribution(spec.low, spec.high, log=spec.log, step=spec.step)
        case Categorical():
            return CategoricalDistribution(spec.choices)
