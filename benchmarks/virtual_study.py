"""One study against recorded curves, in virtual time: the real coordinator, sampler and pruner, no training."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.pruners import BasePruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.storages import InMemoryStorage

from benchmarks.curves import CurveTable
from benchmarks.table_executor import TableExecutor
from fashion_study.config import PrunerName, SamplerName
from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.space.space import SearchSpace
from fashion_study.store.trials import TrialRecord, TrialStorage
from fashion_study.study.loop import Loop
from fashion_study.study.progress import Observer
from fashion_study.study.proposals import Proposals
from fashion_study.testing.memory import MemoryCheckpoints, MemoryTracker
from fashion_study.trial import EpochReport, Precision, TrialResult, TrialState

# After so many trials it is told where a study stands.
FEW_TRIALS = 20


class _AfterOneEpoch(BasePruner):
    def prune(self, study: Any, trial: Any) -> bool:  # noqa: ARG002
        return True


# What is compared beside the pruners that a study can be given.
CANDIDATES: Mapping[str, Callable[[], BasePruner]] = {
    "percentile 25": lambda: PercentilePruner(25.0, n_startup_trials=5, n_warmup_steps=1),
    "Optuna's halving 2, 10": lambda: SuccessiveHalvingPruner(min_resource=2, reduction_factor=5),
    "Optuna's halving 1, 4, 16": lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=4),
    "Optuna's halving 1, 3, 9": lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    "Optuna's halving 1, 2, 4, 8, 16": lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
}


@dataclass(frozen=True)
class OneEpoch:
    """So many trials for one epoch, then the best of them to the most epochs, the best first (arXiv 2307.15422)."""

    trials: int
    finished: int = 3

    def __str__(self) -> str:
        return f"one epoch of {self.trials}"


@dataclass(frozen=True)
class Strategy:
    """A strategy to be replayed. `pruner` is one of a study's own, one of CANDIDATES, or the one-epoch baseline.

    A trial's objective is that of its best epoch, as in a study, or with `last_epoch` that of its last one.
    """

    sampler: SamplerName
    pruner: PrunerName | str | OneEpoch
    workers: int = 1
    last_epoch: bool = False


@dataclass(frozen=True)
class Moment:
    """The progress of a study: all epochs that its workers had trained, the virtual seconds, the best objective."""

    epochs: int
    seconds: float
    best: float


@dataclass(frozen=True)
class Outcome:
    """One replay: each moment at which the best objective rose, and the distances of the rows from the proposals.

    `early` is its progress when FEW_TRIALS had ended; None where it never came so far.
    """

    rises: tuple[Moment, ...]
    end: Moment
    early: Moment | None
    distances: tuple[float, ...]

    def reached(self, target: float) -> Moment | None:
        """Return the first moment with an objective of at least `target`."""
        return next((moment for moment in self.rises if moment.best >= target), None)


def replay(
    strategy: Strategy, space: SearchSpace, table: CurveTable, seed: int, trials: int, target: float = math.inf
) -> Outcome:
    """Run a study of at most `trials`; it ends early once it has FEW_TRIALS and the target.

    A trial gets the nearest row that no other trial of the study has had; its objective is the row's best accuracy
    within as many epochs as were proposed, or the last of these.
    """
    trials = min(trials, len(table.curves))
    one_epoch = strategy.pruner if isinstance(strategy.pruner, OneEpoch) else None
    if one_epoch is not None:
        trials = min(trials, one_epoch.trials)
    executor = TableExecutor(table, space, strategy.workers, best_counts=not strategy.last_epoch)
    # Hyperband puts a trial into a bracket by the study's name and its number: no two seeds share one.
    trial_storage = TrialStorage(InMemoryStorage(), f"replay-{seed}")
    tracker = MemoryTracker()
    watch = _Watch(executor, tracker, trial_storage)

    def is_done() -> bool:
        return one_epoch is None and watch.best >= target and watch.early is not None

    engine, observer = _engine(strategy, trial_storage, space, seed), Observer()
    kept = MemoryCheckpoints.having(lambda spec: executor.curve(spec.number))
    proposals = Proposals(engine, tracker, observer, Precision.FLOAT32, trials, kept)
    Loop(proposals, executor, observer, interrupted=is_done, after_result=watch.look).run()
    if one_epoch is not None:
        _finish(trial_storage.records(), one_epoch.finished, space.max_epochs, executor, watch)
        watch.early = watch.now if one_epoch.trials == FEW_TRIALS else None
    return Outcome(tuple(watch.rises), watch.now, watch.early, tuple(executor.distances))


def _engine(strategy: Strategy, trial_storage: TrialStorage, space: SearchSpace, seed: int) -> OptunaEngine:
    match strategy.pruner:
        case OneEpoch():
            engine = OptunaEngine(trial_storage, space, strategy.sampler, "none", seed)
            trial_storage.study.pruner = _AfterOneEpoch()
        case str(name) if name in CANDIDATES:
            engine = OptunaEngine(trial_storage, space, strategy.sampler, "none", seed)
            trial_storage.study.pruner = CANDIDATES[name]()
        case own:
            engine = OptunaEngine(trial_storage, space, strategy.sampler, own, seed)  # type: ignore[arg-type]
    return engine


def _finish(records: list[TrialRecord], count: int, most: int, executor: TableExecutor, watch: "_Watch") -> None:
    """Train on, from their second epoch to the last there is, the trials that were the best after their first."""
    stopped = [record for record in records if record.state is TrialState.PRUNED]
    best = sorted(stopped, key=lambda record: -record.curve[1])[:count]
    queue = [record.number for record in best]
    while queue or executor.running:
        while queue and executor.running < executor.slots:
            executor.resume(queue.pop(0), after=1, until=most)
        for event in executor.wait(math.inf):
            if isinstance(event, EpochReport):
                executor.answer(event, prune=False)
            elif isinstance(event, TrialResult):
                watch.consider(event.objective)


@dataclass
class _Watch:
    """A record of a study's progress whenever one of its trials has ended."""

    executor: TableExecutor
    tracker: MemoryTracker
    trial_storage: TrialStorage
    rises: list[Moment] = field(default_factory=list)
    early: Moment | None = None
    best: float = -math.inf

    @property
    def now(self) -> Moment:
        return Moment(self.executor.epochs, self.executor.seconds, self.best)

    def look(self) -> None:
        self.consider(self.tracker.best[-1][1] if self.tracker.best else None)
        if self.early is None and self.trial_storage.counted() == FEW_TRIALS:
            self.early = self.now

    def consider(self, objective: float | None) -> None:
        if objective is not None and objective > self.best:
            self.best = objective
            self.rises.append(self.now)
