"""The real worker process with a toy trainer: no TensorFlow, no data, and simulated outcomes of attempts.

`TOY_OUTCOMES` maps attempts to outcomes, as JSON: `{"3/1": "lost"}`; besides those of `SimulatedOutcome` a real process
has the ones below. `TOY_BROKEN` keeps the trainer from starting; with `SIGKILL` the process dies, with `hang` it
never starts. `TOY_PROBE` is the outcome of a probe. `TOY_SLOW` is the seconds that a start takes, `TOY_EPOCH` those
that an epoch takes.
"""

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable

from fashion_study.errors import DataError
from fashion_study.testing import training
from fashion_study.testing.training import SimulatedOutcome, probed, toy_training
from fashion_study.trial import (
    AttemptLost,
    EpochReport,
    ProbeOrder,
    ProbeResult,
    TrialResult,
    TrialSpec,
    WorkerSettings,
)

HUNGER = 256 * 2**20
KEPT: list[bytes] = []


def _crash() -> None:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    ctypes.string_at(0)


def _eat() -> None:
    eaten = bytearray(HUNGER)
    while True:
        eaten[:: 2**12] = bytes(len(eaten[:: 2**12]))
        time.sleep(0.1)


def _keep() -> None:
    KEPT.append(b"x" * HUNGER)


def _sleep_in_native_code() -> None:
    ctypes.PyDLL(None).sleep(600)  # Keeps Python's lock, as an import of TensorFlow does for a while.


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


ENDS: dict[str, Callable[[], object]] = {
    "lost": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": _crash,
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "exit 0": lambda: os._exit(0),
    "hungry": _eat,
    "keeping": _keep,
    "native": _sleep_in_native_code,
    "stuck": lambda: time.sleep(600),
    "stopped": _stop,
}


class ToyTrainer(training.ToyTrainer):
    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings)
        time.sleep(float(os.environ.get("TOY_SLOW", "0")))
        broken = os.environ.get("TOY_BROKEN")
        if broken == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if broken == "hang":
            _sleep_in_native_code()
        if broken == "data":
            raise DataError("the images are gone")
        if broken:
            raise RuntimeError(f"no data for {settings.source.name}")
        self._outcomes: dict[str, str] = json.loads(os.environ.get("TOY_OUTCOMES", "{}"))

    def probe(self, order: ProbeOrder) -> ProbeResult:
        if outcome := os.environ.get("TOY_PROBE"):
            ENDS[outcome]()
        return probed(order)

    def train(self, spec: TrialSpec, go_on: Callable[[EpochReport], bool]) -> TrialResult | AttemptLost:
        name = self._outcomes.get(f"{spec.number}/{spec.attempt}", "")
        toy = toy_training(spec, SimulatedOutcome(name) if name in set(SimulatedOutcome) else None)
        prune = None
        while True:
            time.sleep(float(os.environ.get("TOY_EPOCH", "0")))
            try:
                prune = not go_on(toy.send(prune))
            except StopIteration as end:
                if isinstance(end.value, TrialResult):
                    return end.value
                ENDS[name]()
            if name == "store":
                return AttemptLost(*spec.key, "the store failed: disk full", by_store=True)
            if name not in set(SimulatedOutcome):
                ENDS.get(name, bool)()


if __name__ == "__main__":
    training.work_with(ToyTrainer)
