"""In-memory executors that fail in ways of their own."""

from dataclasses import replace

from fashion_study.executors.executor import Event
from fashion_study.testing.executor import MemoryExecutor
from fashion_study.testing.training import SimulatedOutcome
from fashion_study.trial import AttemptLost, TrialResult, TrialSpec


class IntermittentExecutor(MemoryExecutor):
    """An executor without a worker until the caller has waited five times, and as long after each loss."""

    absent = 5

    @property
    def slots(self) -> int:
        return 0 if self.absent > 0 else super().slots

    def wait(self, timeout: float) -> list[Event]:
        self.absent -= 1
        events = super().wait(timeout)
        if any(isinstance(event, AttemptLost) for event in events):
            self.absent = 5
        return events


class StoreFailureExecutor(MemoryExecutor):
    """An executor that loses attempts by the store's fault alone."""

    def _end(self, spec: TrialSpec, end: TrialResult | SimulatedOutcome) -> list[Event]:
        return [
            replace(event, by_store=True) if isinstance(event, AttemptLost) else event
            for event in super()._end(spec, end)
        ]
