"""Optuna as the engine: its samplers propose, its pruners stop, and one of ours does by default."""

import copy
import itertools
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    _filter_study,
)
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from fashion_study.config import MAX_GRID, PrunerName, SamplerName
from fashion_study.engines.engine import Exhausted, Proposal, Wait
from fashion_study.engines.halving import BestSoFarHalving
from fashion_study.engines.points import Point, distributions_of, key_of
from fashion_study.space.space import SearchSpace
from fashion_study.store.trials import TrialStorage
from fashion_study.trial import BASELINE_NUMBER, ParamValue, TrialResult, trial_seed

# What repeats a known trial is drawn anew, so often by the sampler itself; one that has settled on a point would
# never leave it. Where the points can be counted, one of those left is taken then.
SAMPLER_DRAWS = 20
# Where they cannot, they are drawn at random: of more than MAX_GRID points every study leaves most, so that many draws
# in a row that know nothing new mean that there is next to nothing.
RANDOM_DRAWS = 200

# The attribute that keeps how far a trial has come in the sampler's sequence.
SEQUENCE_INDEX = "qmc_place"


class OptunaEngine:
    """Propose trials of `space` into the trial storage's study: the baseline first, then the points of the user's own.

    No point is proposed twice; only a trial that was sent back to waiting comes again, under its own number.
    """

    def __init__(
        self,
        trial_storage: TrialStorage,
        space: SearchSpace,
        sampler: SamplerName = "tpe",
        pruner: PrunerName = "successive-halving",
        seed: int = 0,
        try_points: tuple[Mapping[str, ParamValue], ...] = (),
    ) -> None:
        self._trial_storage = trial_storage
        self._study = trial_storage.study
        self._sampler_name = sampler
        self._seed = seed
        self._distributions = distributions_of(space)
        # The points that can be counted: those of the grid, or all of a small space.
        self._points = _shuffled_grid(space, seed) if sampler == "grid" else _every_point(self._distributions)
        self._attempt_curves: dict[int, dict[int, float]] = {}
        self._study.pruner = _pruner(pruner, space.max_epochs)
        self._known = {key_of(trial.params) for trial in trial_storage.trials()}
        for point in (space.baseline, *try_points):
            if self._claim(point):
                trial_storage.enqueue(point, self._distributions)

    def ask(self) -> Proposal | Wait | Exhausted:
        """Return a trial that waits, else a new one drawn with the seed of its number."""
        trial = self._trial_storage.claim_waiting() or self._new_trial()
        if trial is None:
            return Exhausted(self._why_exhausted())
        superseded = trial.user_attrs.get("run_id")
        attempt = int(trial.user_attrs.get("attempt", 0)) + 1
        self._attempt_curves[trial.number] = {}
        return Proposal(trial.number, attempt, dict(trial.params), superseded)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Record the objective after `epoch` and ask the pruner; the baseline is never pruned."""
        curve = self._attempt_curves[number]
        curve[epoch] = value
        self._trial_storage.record_value(number, epoch, value)
        if number == BASELINE_NUMBER:
            return False
        trial = self._trial_storage.trial(number)
        if trial.user_attrs.get("pruned_at") == epoch:
            return True  # An interrupted attempt was told so; by now there may be others to compare with.
        # The storage keeps what an interrupted attempt reported; the pruner must see this attempt alone.
        this_attempt = copy.copy(trial)
        this_attempt.intermediate_values = dict(curve)
        prune = self._study.pruner.prune(self._study, this_attempt)
        if prune:
            self._trial_storage.record_prune(number, epoch)
        return prune

    def tell(self, result: TrialResult) -> None:
        """Record for good how a trial ended."""
        self._attempt_curves.pop(result.number, None)
        self._trial_storage.close(result)

    def _new_trial(self) -> FrozenTrial | None:
        """Add a trial to the trial storage that it has not; None where no such point is found."""
        number = len(self._trial_storage.trials())
        sampler = self._sampler(number)
        point = next(filter(self._claim, self._candidates(sampler, number)), None)
        if point is None:
            return None
        attrs = {SEQUENCE_INDEX: sampler.place} if isinstance(sampler, _Sobol) else {}
        return self._trial_storage.add(point, self._distributions, attrs)

    def _sampler(self, number: int) -> BaseSampler:
        # Re-seeded for each trial: a sampler that lives on in a resumed study would draw its first points again.
        seed = trial_seed(self._seed, number)
        match self._sampler_name:
            case "tpe":
                return _Tpe(self._distributions, seed)
            case "qmc":
                # A sequence goes on behind the last place that a trial has taken, whatever a kill has left undone.
                taken = (trial.user_attrs.get(SEQUENCE_INDEX, -1) for trial in self._trial_storage.trials())
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    return _Sobol(self._seed, seed, max(taken, default=-1))
            case "random" | "grid":
                return RandomSampler(seed=seed)

    def _candidates(self, sampler: BaseSampler, number: int) -> Iterator[Point]:
        """Yield points for a trial: drawn by the sampler, then those that can be counted, else drawn at random."""
        seed = trial_seed(self._seed, number)
        if self._sampler_name == "grid":
            yield from self._points or ()
        elif self._points is None:
            yield from (self._draw(sampler, number) for _ in range(SAMPLER_DRAWS))
            anywhere = RandomSampler(seed)
            yield from (self._draw(anywhere, number) for _ in range(RANDOM_DRAWS))
        elif any(key_of(point) not in self._known for point in self._points):
            yield from (self._draw(sampler, number) for _ in range(SAMPLER_DRAWS))
            yield from random.Random(seed).sample(self._points, len(self._points))

    def _draw(self, sampler: BaseSampler, number: int) -> Point:
        """Draw a point for the trial that will have this number, as Optuna's own `ask` does, but write nothing."""
        # A copy, since a study goes on seeing its trials as they were at its last `ask`.
        study = copy.copy(self._study)
        trial = create_trial(state=OptunaState.RUNNING)
        trial.number = number
        with warnings.catch_warnings():
            # QMC counts as experimental, and Optuna says so each time.
            warnings.simplefilter("ignore", ExperimentalWarning)
            study = _filter_study(study, trial)
            sampler.before_trial(study, trial)
            drawn = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
            for name, distribution in self._distributions.items():
                if distribution.single():
                    drawn[name] = (_values(distribution) or ())[0]
                elif name not in drawn:
                    drawn[name] = sampler.sample_independent(study, trial, name, distribution)
        return {name: drawn[name] for name in self._distributions}

    def _claim(self, point: Mapping[str, ParamValue]) -> bool:
        """Take a point that the trial storage has not yet, from now on one of its own; false where it has it."""
        key = key_of(point)
        if key in self._known:
            return False
        self._known.add(key)
        return True

    def _why_exhausted(self) -> str:
        if self._sampler_name == "grid":
            return "every point of the grid has been proposed. Another --sampler can go on"
        if self._points is not None:
            return f"all {len(self._points):,} points of the space have been proposed. A wider space can go on"
        return f"{SAMPLER_DRAWS + RANDOM_DRAWS} draws in a row found no new point. A wider space can go on"


def _every_point(distributions: Mapping[str, BaseDistribution]) -> list[Point] | None:
    """List every point where they are few enough to be counted, else None."""
    axes = {name: _values(distribution) for name, distribution in distributions.items()}
    if any(values is None for values in axes.values()):
        return None
    counted = {name: values for name, values in axes.items() if values is not None}
    if math.prod(len(values) for values in counted.values()) > MAX_GRID:
        return None
    return [dict(zip(counted, values, strict=True)) for values in itertools.product(*counted.values())]


def _values(distribution: BaseDistribution) -> Sequence[ParamValue] | None:
    """List the values that a parameter can take, None where they are many."""
    match distribution:
        case CategoricalDistribution():
            return [value for value in distribution.choices if isinstance(value, int | float | str)]
        case IntDistribution():
            return range(distribution.low, distribution.high + 1, 1 if distribution.log else distribution.step)
        case FloatDistribution() if distribution.single():
            return [distribution.low]
        case FloatDistribution(step=float(step)) if distribution.high - distribution.low <= MAX_GRID * step:
            return [
                distribution.low + step * place
                for place in range(round((distribution.high - distribution.low) / step) + 1)
            ]
    return None


def _shuffled_grid(space: SearchSpace, seed: int) -> list[dict[str, ParamValue]]:
    """Return every point of the space's grid, in an order that the seed decides."""
    axes = space.grid
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    random.Random(seed).shuffle(points)
    return points


class _Tpe(TPESampler):
    """Draw for a trial that the storage has not yet: there is no other process that has to know of it."""

    def __init__(self, space: Mapping[str, BaseDistribution], seed: int) -> None:
        super().__init__(seed=seed)
        self._space = dict(sorted(space.items()))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """Return the study's space, which all of its trials have; Optuna would compare them all with each other."""
        return {name: distribution for name, distribution in self._space.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sample_relative(study, trial, search_space)


class _Sobol(QMCSampler):
    """Draw from one sequence behind a place of it; Optuna counts them in the storage, where a kill skips one."""

    def __init__(self, study_seed: int, trial_seed: int, place: int) -> None:
        # The sequence must stay the same one: no seed per trial.
        super().__init__(
            qmc_type="sobol",
            scramble=True,
            seed=study_seed,
            independent_sampler=RandomSampler(trial_seed),
            warn_independent_sampling=False,
        )
        self.place = place

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:  # noqa: ARG002
        self.place += 1
        return self.place


def _pruner(name: PrunerName, max_epochs: int) -> BasePruner:
    match name:
        case "hyperband":
            # "auto" would take the scale from the first trials that happen to complete.
            return HyperbandPruner(min_resource=1, max_resource=max_epochs, reduction_factor=3)
        case "successive-halving":
            return BestSoFarHalving(max_epochs)
        case "median":
            return MedianPruner(n_startup_trials=5, n_warmup_steps=1)
        case "none":
            return NopPruner()
