"""Optuna as the engine: its samplers propose, its pruners stop."""

import copy
import itertools
import random
import warnings
from collections.abc import Mapping

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler

from fashion_study.config import PrunerName, SamplerName
from fashion_study.engines.engine import Exhausted, Proposal, Wait
from fashion_study.engines.ledger import Ledger
from fashion_study.space import Categorical, Float, Int, Parameter, SearchSpace
from fashion_study.trial import ParamValue, TrialResult, trial_seed

BASELINE_NUMBER = 0


class OptunaEngine:
    """Propose trials of `space` into the ledger's study: the baseline first, then the points of the user's own."""

    def __init__(
        self,
        ledger: Ledger,
        space: SearchSpace,
        sampler: SamplerName = "tpe",
        pruner: PrunerName = "successive-halving",
        seed: int = 0,
        try_points: tuple[Mapping[str, ParamValue], ...] = (),
    ) -> None:
        self._ledger = ledger
        self._study = ledger.study
        self._sampler_name = sampler
        self._seed = seed
        self._distributions = {name: _distribution(spec) for name, spec in space.parameters.items()}
        self._grid = _shuffled_grid(space, seed) if sampler == "grid" else None
        self._attempt_curves: dict[int, dict[int, float]] = {}
        self._study.pruner = _pruner(pruner, space.max_epochs)
        for point in (space.baseline, *try_points):
            ledger.enqueue(point)

    def ask(self) -> Proposal | Wait | Exhausted:
        """Return a trial that waits, else a new one drawn with the seed of its number."""
        if self._grid is not None and not self._enqueue_from_grid(self._grid):
            return Exhausted("every point of the grid has been proposed")
        with warnings.catch_warnings():
            # A waiting trial keeps its own values, and QMC counts as experimental; Optuna says so for each one.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", ExperimentalWarning)
            # Re-seeded each time: a sampler that lives on in a resumed study would draw its first points again.
            self._study.sampler = _sampler(self._sampler_name, self._seed, len(self._ledger.trials()))
            trial = self._study.ask(fixed_distributions=self._distributions)
        superseded = trial.user_attrs.get("run_id")
        attempt = int(trial.user_attrs.get("attempt", 0)) + 1
        self._attempt_curves[trial.number] = {}
        return Proposal(trial.number, attempt, dict(trial.params), superseded)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Record the objective after `epoch` and ask the pruner; the baseline is never pruned."""
        curve = self._attempt_curves[number]
        curve[epoch] = value
        self._ledger.record_value(number, epoch, value)
        if number == BASELINE_NUMBER:
            return False
        trial = self._ledger.trial(number)
        if trial.user_attrs.get("pruned_at") == epoch:
            return True  # An interrupted attempt was told so; halving decides on an epoch only once.
        # The storage keeps what an interrupted attempt reported; the pruner must see this attempt alone.
        this_attempt = copy.copy(trial)
        this_attempt.intermediate_values = dict(curve)
        prune = self._study.pruner.prune(self._study, this_attempt)
        if prune:
            self._ledger.record_verdict(number, epoch)
        return prune

    def tell(self, result: TrialResult) -> None:
        """Record for good how a trial ended."""
        self._attempt_curves.pop(result.number, None)
        self._ledger.close(result)

    def _enqueue_from_grid(self, grid: list[dict[str, ParamValue]]) -> bool:
        """Enqueue the next point of the grid that the ledger has not; say whether anything waits."""
        if self._ledger.has_waiting():
            return True
        known = {_key(trial.system_attrs.get("fixed_params", trial.params)) for trial in self._ledger.trials()}
        for point in grid:
            if _key(point) not in known:
                self._ledger.enqueue(point)
                return True
        return False


def _key(params: Mapping[str, ParamValue]) -> tuple[tuple[str, ParamValue], ...]:
    return tuple(sorted(params.items()))


def _shuffled_grid(space: SearchSpace, seed: int) -> list[dict[str, ParamValue]]:
    """Return every point of the space's grid, in an order that the seed decides."""
    axes = space.grid
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    random.Random(seed).shuffle(points)
    return points


def _distribution(spec: Parameter) -> BaseDistribution:
    match spec:
        case Int():
            return IntDistribution(spec.low, spec.high, log=spec.log, step=spec.step)
        case Float():
            return FloatDistribution(spec.low, spec.high, log=spec.log, step=spec.step)
        case Categorical():
            return CategoricalDistribution(spec.choices)


def _sampler(name: SamplerName, study_seed: int, number: int) -> BaseSampler:
    seed = trial_seed(study_seed, number)
    match name:
        case "tpe":
            return TPESampler(seed=seed)
        case "qmc":
            # A sequence keeps its place in the storage and must stay the same one: no seed per trial.
            return QMCSampler(
                qmc_type="sobol",
                scramble=True,
                seed=study_seed,
                independent_sampler=RandomSampler(seed),
                warn_independent_sampling=False,
            )
        case "random" | "grid":
            return RandomSampler(seed=seed)


def _pruner(name: PrunerName, max_epochs: int) -> BasePruner:
    match name:
        case "hyperband":
            # "auto" would take the scale from the first trials that happen to complete.
            return HyperbandPruner(min_resource=1, max_resource=max_epochs, reduction_factor=3)
        case "successive-halving":
            # Looks after 2 and 10 epochs (and 50, ...): of each five trials about one goes on.
            return SuccessiveHalvingPruner(min_resource=2, reduction_factor=5)
        case "median":
            return MedianPruner(n_startup_trials=5, n_warmup_steps=1)
        case "none":
            return NopPruner()
