"""In-memory executors that fail in ways of their own."""

from dataclasses import dataclass, replace

from fashion_study.executors.executor import Event
from fashion_study.testing.memory import MemoryExecutor
from fashion_study.trial import AttemptLost


@dataclass(eq=False)
class IntermittentExecutor(MemoryExecutor):
    """An executor without a worker until the caller has waited five times, and as long after each loss."""

    def __post_init__(self) -> None:
        self.present, self.slots, self.absent = self.slots, 0, 5

    def wait(self, timeout: float) -> list[Event]:
        self.absent -= 1
        events = super().wait(timeout)
        if any(isinstance(event, AttemptLost) for event in events):
            self.absent = 5
        self.slots = 0 if self.absent > 0 else self.present
        return events


class StoreFailureExecutor(MemoryExecutor):
    """An executor that loses attempts by the store's fault alone."""

    def wait(self, timeout: float) -> list[Event]:
        events = super().wait(timeout)
        return [replace(event, by_store=True) if isinstance(event, AttemptLost) else event for event in events]
