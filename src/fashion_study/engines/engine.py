"""Engines, which propose a study's trials: the bookkeeping that is the same for all of them."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from fashion_study.errors import BadInputError
from fashion_study.space.space import Categorical, Float, Int, SearchSpace
from fashion_study.store.trials import PAUSED_AT, TrialRecord, TrialStorage
from fashion_study.trial import (
    BASELINE_NUMBER,
    EarlierTrial,
    ParamValue,
    TrialResult,
    TrialSpec,
    TrialState,
    trial_seed,
)

Point = dict[str, ParamValue]

# The attribute of a trial that names the earlier trial from whose checkpoint it goes on.
CONTINUES = "continues"


@dataclass(frozen=True)
class Wait:
    """Nothing to propose before a running trial has ended."""


@dataclass(frozen=True)
class Exhausted:
    """Nothing left to propose, and the reason."""

    reason: str


@dataclass(frozen=True)
class PutAside:
    """A waiting trial of another program's that cannot be trained, with the reason."""

    number: int
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A point for a new trial, with the attributes that the engine stores with the trial."""

    point: Point
    attrs: Mapping[str, Any] = field(default_factory=dict)


class Engine(ABC):
    """Base class of all engines: a subclass has `draw` and, if it stops trials, `prune`.

    Where a trial may go on from the checkpoint of an earlier one (`continues_trials`), those of ended trials are kept.
    Waiting trials are proposed first: the baseline, the user's own points, and trials that an interruption sent back.
    New points follow; none is proposed twice. `distributions` replaces those of the space, by parameter.
    """

    continues_trials = False
    # Whether a trial that is stopped is paused, and may go on.
    pauses = False

    def __init__(
        self,
        trial_storage: TrialStorage,
        space: SearchSpace,
        seed: int = 0,
        try_points: Iterable[Mapping[str, ParamValue]] = (),
        distributions: Mapping[str, BaseDistribution] | None = None,
    ) -> None:
        self.trial_storage = trial_storage
        self.space = space
        self.seed = seed
        self.distributions = distributions_of(space) | dict(distributions or {})
        # Of equal points the first: another program may have enqueued one again.
        self._numbers = {_key(trial.params): trial.number for trial in reversed(trial_storage.trials())}
        self._attempt_curves: dict[int, dict[int, float]] = {}
        for point in (space.baseline, *try_points):
            if self.number_of(point) is None:
                added = trial_storage.add(point, self.distributions, state=OptunaState.WAITING)
                self._numbers[_key(point)] = added.number

    @abstractmethod
    def draw(self, number: int, seed: int) -> Iterator[Candidate | Wait | Exhausted]:
        """Yield candidates for the new trial `number` until one is new, and at last why there are no more.

        A candidate may depend on `seed`, which is the trial's own, and on the trials in the storage, but on nothing
        else: a resumed study draws the same points.
        """

    def prune(self, trial: FrozenTrial) -> bool:  # noqa: ARG002
        """Return whether to stop a running trial now; its intermediate values are this attempt's alone."""
        return False

    def to_go_on(self, *, may_begin: bool) -> TrialRecord | None:  # noqa: ARG002
        """Return the paused trial that is to go on now, if there is one, whether or not a new one `may_begin`."""
        return None

    def number_of(self, point: Mapping[str, ParamValue]) -> int | None:
        """Return the number of the trial that has this point, None for a new point."""
        return self._numbers.get(_key(point))

    def ask(self, *, may_begin: bool = True) -> TrialSpec | Wait | Exhausted | PutAside:
        """Return the next attempt at a waiting trial or at a paused one that is to go on, else at a new trial.

        No run is open for it yet. Without `may_begin` no new trial is begun.
        """
        trial: FrozenTrial | Wait | Exhausted | PutAside | None
        if (waiting := self.trial_storage.claim_waiting(is_begun=not may_begin)) is not None:
            trial = self._completed(waiting)
        else:
            trial = self._promoted(may_begin) or (self._new_trial() if may_begin else Wait())
        if not isinstance(trial, FrozenTrial):
            return trial
        number, attrs = trial.number, trial.user_attrs
        self._attempt_curves[number] = {}
        return TrialSpec(
            number,
            int(attrs.get("attempt", 0)) + 1,
            self.space.hyperparameters(trial.params),
            trial_seed(self.seed, number),
            continues=self._earlier(trial),
            supersedes=attrs.get("run_id"),
            was_paused=attrs.get(PAUSED_AT) is not None,
        )

    def _promoted(self, may_begin: bool) -> FrozenTrial | None:
        record = self.to_go_on(may_begin=may_begin)
        return None if record is None else self.trial_storage.promote(record.number, record.paused_at)

    def _earlier(self, trial: FrozenTrial) -> EarlierTrial | None:
        """Return the trial from whose checkpoint this one goes on."""
        if (number := trial.user_attrs.get(CONTINUES)) is None:
            return None
        origin = self.trial_storage.trial(number)
        before = self._earlier(origin)
        own = (trial_seed(self.seed, number), int(origin.params["epochs"]))
        return EarlierTrial(number, origin.user_attrs.get("run_id"), own[1], (*(before.seeds if before else ()), own))

    def resume(self, number: int, values: Mapping[int, float]) -> None:
        """Record the objective after the epochs of an attempt that another one goes on with, as far as that is lacking.

        The last one is reported again: nobody may have answered it.
        """
        stored = self.trial_storage.trial(number).intermediate_values
        for epoch, value in values.items():
            self._attempt_curves[number][epoch] = value
            if stored.get(epoch) != value:
                self.trial_storage.record_value(number, epoch, value)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Record the objective after `epoch` (from 1); return whether to prune the trial now, never the baseline."""
        curve = self._attempt_curves[number]
        curve[epoch] = value
        self.trial_storage.record_value(number, epoch, value)
        if number == BASELINE_NUMBER:
            return False
        trial = self.trial_storage.trial(number)
        if trial.user_attrs.get("pruned_at") == epoch:
            return True  # Decided in an interrupted attempt; by now the pruner has other trials to compare with.
        # The storage keeps what an interrupted attempt reported.
        this_attempt = copy.copy(trial)
        this_attempt.intermediate_values = dict(curve)
        if (prune := self.prune(this_attempt)) and not self.pauses:
            self.trial_storage.record_prune(number, epoch)
        return prune

    def tell(self, result: TrialResult) -> None:
        """Record how a trial ended, or that it is paused."""
        self._attempt_curves.pop(result.number, None)
        if result.state is TrialState.PAUSED:
            self.trial_storage.pause(result.number, result.epochs_run, result.seconds)
        else:
            self.trial_storage.close(result)

    def _completed(self, trial: FrozenTrial) -> FrozenTrial | PutAside:
        """Return a waiting trial; one that another program has enqueued is completed from the baseline first."""
        is_own = trial.distributions == self.distributions and self.number_of(trial.params) == trial.number
        if is_own or "attempt" in trial.user_attrs:
            return trial
        try:
            point = self.space.complete({**trial.system_attrs.get("fixed_params", {}), **trial.params})
            if (known := self._numbers.setdefault(_key(point), trial.number)) == trial.number:
                return self.trial_storage.complete(trial.number, point, self.distributions)
            reason = f"trial {known:03d} has the same parameters"
        except BadInputError as error:
            reason = str(error)
        self.trial_storage.put_aside(trial.number, reason)
        return PutAside(trial.number, reason)

    def _new_trial(self) -> FrozenTrial | Wait | Exhausted:
        number = self.trial_storage.next_number
        for drawn in self.draw(number, trial_seed(self.seed, number)):
            if not isinstance(drawn, Candidate):
                return drawn
            if self.number_of(drawn.point) is None:
                trial = self.trial_storage.add(drawn.point, self.distributions, drawn.attrs)
                self._numbers[_key(drawn.point)] = trial.number
                return trial
        return Exhausted("no new point is left")


def distributions_of(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return the parameters of a space as Optuna's distributions."""
    distributions: dict[str, BaseDistribution] = {}
    for name, parameter in space.parameters.items():
        match parameter:
            case Int(low=low, high=high, log=log, step=step):
                distributions[name] = IntDistribution(low, high, log=log, step=step)
            case Float(low=low, high=high, log=log, step=step):
                distributions[name] = FloatDistribution(low, high, log=log, step=step)
            case Categorical():
                distributions[name] = CategoricalDistribution(parameter.choices)
    return distributions


def _key(point: Mapping[str, ParamValue]) -> tuple[tuple[str, ParamValue], ...]:
    """Return what equal points have in common: their values, floats without the rounding of a step."""
    return tuple(
        (name, float(f"{value:.12g}") if isinstance(value, float) else value) for name, value in sorted(point.items())
    )
