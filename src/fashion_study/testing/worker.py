"""A real worker process whose trainer is a toy: no TensorFlow and no data."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import cast

from fashion_study.testing.training import PROBED, toy_training
from fashion_study.trial import AttemptLost, EpochReport, ProbeResult, TrialResult, TrialSpec, WorkerSettings
from fashion_study.worker import process


class ToyTrainer:
    """In-memory twin of a worker's trainer."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings

    def probe(self) -> ProbeResult:
        """Return invented measurements."""
        return PROBED

    def train(self, spec: TrialSpec, go_on: Callable[[EpochReport], bool]) -> TrialResult | AttemptLost:
        """Train the toy objective until its last epoch, or until `go_on` says no."""
        training = toy_training(spec, None)
        prune = None
        while True:
            try:
                prune = not go_on(training.send(prune))
            except StopIteration as end:
                return cast(TrialResult, end.value)


def work_with(trainer: type[ToyTrainer]) -> None:
    """Run this process as a worker with another trainer."""
    module = ModuleType("fashion_study.worker.trainer")
    module.Trainer = trainer  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    process.main()
