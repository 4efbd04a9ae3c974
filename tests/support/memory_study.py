"""A study of the smoke space with everything around its loop in memory."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.storages import RDBStorage

from fashion_study.config import PrunerName, SamplerName
from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.space.file import load_space
from fashion_study.space.space import SearchSpace
from fashion_study.store.trials import TrialStorage
from fashion_study.study.loop import Loop
from fashion_study.study.proposals import Proposals
from fashion_study.testing.memory import (
    MemoryCheckpoints,
    MemoryExecutor,
    MemoryTracker,
    RecordingObserver,
    memory_storage,
)
from fashion_study.testing.training import Key, SimulatedOutcome
from fashion_study.trial import Precision, TrialState

SMOKE = load_space("smoke")
SEED = 7


@dataclass
class Study:
    """A study of the smoke space with everything around the loop in memory."""

    trials: int = 4
    slots: int = 1
    outcomes: Mapping[Key, SimulatedOutcome] = field(default_factory=dict)
    sampler: SamplerName = "random"
    pruner: PrunerName = "none"
    deadline: float = math.inf
    epoch_budget: int | None = None
    storage: RDBStorage = field(default_factory=memory_storage)
    space: SearchSpace = SMOKE
    tracker: MemoryTracker | None = None
    engine: type[OptunaEngine] = OptunaEngine
    has_checkpoints: bool = False
    is_hard: bool = False

    def __post_init__(self) -> None:
        self.journal: list[str] = []
        self.trial_storage = TrialStorage(self.storage, "toy")
        self.executor = MemoryExecutor(self.slots, self.outcomes, self.journal)
        self.runs = self.tracker or MemoryTracker(self.journal)
        self.observer = RecordingObserver()

    def run(
        self, interrupted: Callable[[], bool] = lambda: False, after_result: Callable[[], None] = lambda: None
    ) -> Proposals:
        engine = self.engine(self.trial_storage, self.space, self.sampler, self.pruner, SEED)
        kept = MemoryCheckpoints.having(lambda spec: self.runs.runs[spec.run_id].epochs)
        checkpoints = kept if self.has_checkpoints else None
        proposals = Proposals(engine, self.runs, self.observer, Precision.FLOAT32, self.trials, checkpoints)
        epochs = (math.inf if self.epoch_budget is None else self.epoch_budget) - self.trial_storage.epochs_trained()
        limits = self.deadline, epochs, self.is_hard
        Loop(proposals, self.executor, self.observer, interrupted, *limits, after_result).run()
        return proposals

    def again(self, **changes: Any) -> "Study":
        """The same study, run again later: the trial storage stays, the processes are new."""
        return replace(self, **({"outcomes": {}} | changes))

    def states(self) -> list[TrialState]:
        return [record.state for record in self.trial_storage.records()]


def smoke_with(epochs: int) -> SearchSpace:
    """The smoke space with as many epochs in every trial."""
    content = SMOKE.model_dump()
    del content["parameters"]["epochs"], content["baseline"]["epochs"]
    return SearchSpace.model_validate(content | {"fixed": content["fixed"] | {"epochs": epochs}})


def few_points() -> SearchSpace:
    """The smoke space with six points in all."""
    content = SMOKE.model_dump()
    parameters = {name: content["parameters"][name] for name in ("filters_1", "epochs")}
    baseline = {name: content["baseline"][name] for name in parameters}
    changed = {"parameters": parameters, "baseline": baseline, "fixed": content["fixed"] | {"learning_rate": 1e-3}}
    return SearchSpace.model_validate(content | changed)


def interrupted_after(study: Study, epochs: int) -> Callable[[], bool]:
    return lambda: study.executor.epochs >= epochs
