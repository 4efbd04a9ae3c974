"""The real worker process with a toy for a trainer: no TensorFlow, no data, and fates for attempts to meet.

`TOY_FATES` maps attempts to fates, as JSON: `{"3/1": "lost"}`. `TOY_BROKEN` keeps the trainer from starting;
with `SIGKILL` it takes the process along.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from types import ModuleType

from fashion_study.training import worker
from fashion_study.trial import EpochReport, ProbeResult, TrialResult, TrialSpec, WorkerSettings
from tests.twins import PROBED, Fate, toy_training


class ToyTrainer:
    def __init__(self, settings: WorkerSettings) -> None:
        broken = os.environ.get("TOY_BROKEN")
        if broken == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if broken:
            raise RuntimeError(f"no data for {settings.source.name}")
        fates = json.loads(os.environ.get("TOY_FATES", "{}"))
        self._fates = {name: Fate(fate) for name, fate in fates.items()}

    def probe(self) -> ProbeResult:
        return PROBED

    def train(self, spec: TrialSpec, go_on: Callable[[EpochReport], bool]) -> TrialResult:
        training = toy_training(spec, self._fates.get(f"{spec.number}/{spec.attempt}"))
        verdict = None
        while True:
            try:
                verdict = not go_on(training.send(verdict))
            except StopIteration as end:
                return self._meet(end.value)

    def _meet(self, end: TrialResult | Fate) -> TrialResult:
        if end is Fate.LOST:
            os.kill(os.getpid(), signal.SIGKILL)
        while end is Fate.STUCK:
            time.sleep(1)
        assert isinstance(end, TrialResult)
        return end


if __name__ == "__main__":
    trainer = ModuleType("fashion_study.training.trainer")
    trainer.Trainer = ToyTrainer  # type: ignore[attr-defined]
    sys.modules[trainer.__name__] = trainer
    worker.main()
