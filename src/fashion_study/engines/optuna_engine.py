"""Optuna as the engine: its samplers propose; a pruner stops trials, or pauses them, which is the default."""

import copy
import itertools
import math
import random
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, _filter_study
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from fashion_study.config import MAX_GRID, PrunerName, SamplerName
from fashion_study.engines.asha import AsynchronousHalving
from fashion_study.engines.engine import Candidate, Engine, Exhausted, Point, Wait
from fashion_study.space.space import SearchSpace
from fashion_study.store.trials import TrialRecord, TrialStorage, last_epoch
from fashion_study.trial import FailReason, ParamValue

# How often the sampler draws before its points count as known: one that has settled on a point would never leave it.
# Where the points of a space can be counted, one of those left is taken then.
SAMPLER_DRAWS = 20
# Where they cannot, points are drawn at random: every study leaves most of more than MAX_GRID points, so that so many
# draws in a row without a new point mean that there is next to none.
RANDOM_DRAWS = 200

# So many trials TPE looks at: its time grows with them. It imitates the best, GOOD_TRIALS at most
# (`optuna.samplers.TPESampler`, `gamma`), which stay among them; of the others the newest are enough to avoid.
TPE_HISTORY, GOOD_TRIALS = 1_000, 25

# The attribute of a trial with its index in the sampler's sequence.
SEQUENCE_INDEX = "qmc_place"


class OptunaEngine(Engine):
    """Engine that draws with a sampler of Optuna's, and stops or pauses trials by a pruner."""

    def __init__(
        self,
        trial_storage: TrialStorage,
        space: SearchSpace,
        sampler: SamplerName = "tpe",
        pruner: PrunerName = "asha",
        seed: int = 0,
        try_points: tuple[Mapping[str, ParamValue], ...] = (),
    ) -> None:
        super().__init__(trial_storage, space, seed, try_points)
        self._study = trial_storage.study
        self._study.pruner = _pruner(pruner, space.max_epochs)
        self._halving = AsynchronousHalving(space.max_epochs, trial_storage.ranked) if pruner == "asha" else None
        self.pauses = self._halving is not None
        self._history: list[FrozenTrial] = []
        self._values = trial_storage.ranked(_value_so_far)
        self._sampler_name = sampler
        # The points that can be counted: those of the grid, in an order that the seed decides, or all of a small space.
        self._points = _product(space.grid) if sampler == "grid" else _every_point(self.distributions)
        if sampler == "grid" and self._points:
            random.Random(seed).shuffle(self._points)

    def draw(self, number: int, seed: int) -> Iterator[Candidate | Wait | Exhausted]:
        """Yield points drawn by the sampler, then those that can be counted, else points drawn at random."""
        # Seeded for each trial: a sampler that lives on in a resumed study would draw its first points again.
        sampler = self._sampler(seed)
        history = [_as_infeasible(trial) for trial in self.tpe_history()]
        self._history = [_so_far(trial) for trial in history] if self.pauses else history
        for point in self._candidates(sampler, number, seed):
            yield Candidate(point, {SEQUENCE_INDEX: sampler.index} if isinstance(sampler, _Sobol) else {})
        if self._sampler_name == "grid":
            yield Exhausted("every point of the grid has been proposed. Another --sampler can go on")
        elif self._points is not None:
            yield Exhausted(
                f"all {len(self._points):,} points of the space have been proposed. A wider space can go on"
            )
        else:
            draws = SAMPLER_DRAWS + RANDOM_DRAWS
            yield Exhausted(f"{draws} draws in a row found no new point. A wider space can go on")

    def prune(self, trial: FrozenTrial) -> bool:
        """Return what the study's pruner decides."""
        if self._halving is None:
            return self._study.pruner.prune(self._study, trial)
        epoch, promoted = trial.last_step or 0, int(trial.user_attrs.get("promoted_at") or 0)
        return epoch > promoted and not self._halving.goes_on(self.trial_storage.record(trial.number), epoch)

    def to_go_on(self, *, may_begin: bool) -> TrialRecord | None:
        """Return the paused trial that the pruner lets go on."""
        number = None if self._halving is None else self._halving.to_go_on(may_begin=may_begin)
        return None if number is None else self.trial_storage.record(number)

    def tpe_history(self) -> list[FrozenTrial]:
        """Return those of all trials that TPE looks at: the best, finished or not, and the newest of the others."""
        trials = self.trial_storage.trials()
        if len(trials) <= TPE_HISTORY:
            return trials
        good = sorted(number for _, number in self._values()[-GOOD_TRIALS:])
        newest = trials[len(good) - TPE_HISTORY :]
        return [self.trial_storage.trial(number) for number in good if number < newest[0].number] + newest

    def _sampler(self, seed: int) -> BaseSampler:
        match self._sampler_name:
            case "tpe":
                return _Tpe(self.distributions, seed)
            case "qmc":
                # The sequence continues behind the last index that a trial has taken, whatever a kill has left undone.
                taken = (trial.user_attrs.get(SEQUENCE_INDEX, -1) for trial in self.trial_storage.trials())
                with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                    return _Sobol(self.seed, seed, max(taken, default=-1))
            case "random" | "grid":
                return RandomSampler(seed)

    def _candidates(self, sampler: BaseSampler, number: int, seed: int) -> Iterator[Point]:
        if self._sampler_name == "grid":
            yield from self._points or ()
        elif self._points is None:
            yield from (self._draw(sampler, number) for _ in range(SAMPLER_DRAWS))
            uniform = RandomSampler(seed)
            yield from (self._draw(uniform, number) for _ in range(RANDOM_DRAWS))
        elif any(self.number_of(point) is None for point in self._points):
            yield from (self._draw(sampler, number) for _ in range(SAMPLER_DRAWS))
            yield from random.Random(seed).sample(self._points, len(self._points))

    def _seen(self, *_: Any, states: Container[OptunaState] = tuple(OptunaState), **__: Any) -> list[FrozenTrial]:
        """Return what the sampler sees of the study's trials, in the place of a study's own method."""
        return [trial for trial in self._history if trial.state in states]

    def _draw(self, sampler: BaseSampler, number: int) -> Point:
        """Draw a point for the trial that will have this number, as Optuna's own `ask` does, but write nothing."""
        # A copy, since a study goes on seeing its trials as they were at its last `ask`.
        study = copy.copy(self._study)
        # TPE asks past the study's cache. (The study that Hyperband makes below reads all trials itself.)
        vars(study)["_get_trials"] = self._seen
        trial = create_trial(state=OptunaState.RUNNING)
        trial.number = number
        # QMC counts as experimental, and Optuna says so each time.
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            study = _filter_study(study, trial)
            sampler.before_trial(study, trial)
            drawn = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
            for name, distribution in self.distributions.items():
                if distribution.single():
                    drawn[name] = (_values(distribution) or ())[0]
                elif name not in drawn:
                    drawn[name] = sampler.sample_independent(study, trial, name, distribution)
        return {name: drawn[name] for name in self.distributions}


def _value_so_far(record: TrialRecord) -> tuple[float, int] | None:
    """Return the objective of a complete trial or the best value of one that may go on, and its number."""
    value = record.objective if record.state.is_ended else max(record.curve.values(), default=None)
    return None if value is None else (value, record.number)


def _every_point(distributions: Mapping[str, BaseDistribution]) -> list[Point] | None:
    """Return every point where they are few enough to be counted, else None."""
    axes: dict[str, Sequence[ParamValue]] = {}
    for name, distribution in distributions.items():
        values = _values(distribution)
        if values is None:
            return None
        axes[name] = values
    return None if math.prod(map(len, axes.values())) > MAX_GRID else _product(axes)


def _values(distribution: BaseDistribution) -> Sequence[ParamValue] | None:
    """Return the values that a parameter can take, None where they are too many."""
    match distribution:
        case CategoricalDistribution():
            return [value for value in distribution.choices if isinstance(value, int | float | str)]
        case IntDistribution():
            return range(distribution.low, distribution.high + 1, 1 if distribution.log else distribution.step)
        case FloatDistribution() if distribution.single():
            return [distribution.low]
        case FloatDistribution(step=float(step)) if distribution.high - distribution.low <= MAX_GRID * step:
            steps = round((distribution.high - distribution.low) / step)
            return [distribution.low + step * count for count in range(steps + 1)]
    return None


def _product(axes: Mapping[str, Sequence[ParamValue]]) -> list[Point]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


class _Tpe(TPESampler):
    """TPE for a trial that is not in the storage yet: there is no other process that has to know of it."""

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
    """One Sobol sequence, continued behind an index; Optuna counts in the storage, where a kill skips a point."""

    def __init__(self, study_seed: int, trial_seed: int, index: int) -> None:
        # The sequence must stay the same one: no seed per trial.
        super().__init__(
            qmc_type="sobol",
            scramble=True,
            seed=study_seed,
            independent_sampler=RandomSampler(trial_seed),
            warn_independent_sampling=False,
        )
        self.index = index

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:  # noqa: ARG002
        self.index += 1
        return self.index


def _pruner(name: PrunerName, max_epochs: int) -> BasePruner:
    match name:
        case "hyperband":
            # "auto" would take the scale from the first trials that happen to complete.
            return HyperbandPruner(min_resource=1, max_resource=max_epochs, reduction_factor=3)
        case "successive-halving":
            return BestSoFarHalving(max_epochs)
        case "median":
            return MedianPruner(n_startup_trials=5, n_warmup_steps=1)
        case "asha" | "none":
            return NopPruner()


class BestSoFarHalving(BasePruner):
    """Pruner that lets a trial pass a rung whose best value so far is in the better half of all trials at that rung.

    The rungs are 1, 2, 4, ... steps, as long as more than half of the most steps is left after them: a later rung
    could save little. They are the same for trials with fewer steps: to skip a rung in the second half of a trial's
    own steps costs more epochs than it gains (decision 0015). A trial is compared, when it reaches a rung, with those
    that have reached it before (asynchronous successive halving, Li et al. 2020, arXiv 1810.05934, but trials are
    stopped instead of paused). Optuna's own `SuccessiveHalvingPruner` compares the values of the rung's step alone, so
    that one unlucky epoch ends a good trial.
    """

    def __init__(self, most_steps: int) -> None:
        rungs = (2**power for power in range(most_steps.bit_length()))
        # For each rung the best values of finished trials, by number: these do not change any more.
        self._settled: dict[int, dict[int, float]] = {rung: {} for rung in rungs if 2 * rung < most_steps}

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether to stop a trial at its last step; higher values are better."""
        rung = trial.last_step
        if rung not in self._settled:
            return False
        settled, others = self._settled[rung], []
        for other in study.get_trials(deepcopy=False):
            best = settled.get(other.number)
            if best is None and rung in other.intermediate_values and rung <= last_epoch(other):
                best = _best_until(other, rung)
                if other.state.is_finished():
                    settled[other.number] = best
            if best is not None and other.number != trial.number:
                others.append(best)
        own = _best_until(trial, rung)
        return sum(best > own for best in others) >= max(1, (len(others) + 1) // 2)


def _as_infeasible(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial as a sampler should see it: an infeasible one as worse than any other.

    Optuna's samplers see nothing of a failed trial, and take one that was pruned before its first value for the worst.
    """
    if trial.state is not OptunaState.FAIL or trial.user_attrs.get("reason") != FailReason.INFEASIBLE:
        return trial
    seen = copy.copy(trial)
    seen.state, seen.values, seen.intermediate_values = OptunaState.PRUNED, None, {}
    return seen


def _so_far(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial as a sampler should see it: one that may go on with the best value that it has reached.

    Optuna's samplers see nothing of a waiting trial, and take a running one for a bad one.
    """
    if trial.state.is_finished() or not trial.intermediate_values:
        return trial
    seen = copy.copy(trial)
    seen.state, seen.value = OptunaState.COMPLETE, max(trial.intermediate_values.values())
    return seen


def _best_until(trial: FrozenTrial, step: int) -> float:
    return max(value for reached, value in trial.intermediate_values.items() if reached <= step)
