"""In-memory twin of the executors."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from fashion_study.executors.executor import Event
from fashion_study.testing.training import PROBED, Key, SimulatedOutcome, toy_training
from fashion_study.trial import AttemptLost, EpochReport, ProbeResult, TrialResult, TrialSpec


@dataclass
class _Attempt:
    spec: TrialSpec
    training: Generator[EpochReport, bool | None, TrialResult | SimulatedOutcome]
    is_ready: bool = True
    prune: bool | None = None


class MemoryExecutor:
    """In-memory twin of an executor: while it waits, it trains one toy epoch of each attempt that may go on."""

    def __init__(
        self, slots: int = 1, outcomes: Mapping[Key, SimulatedOutcome] | None = None, journal: list[str] | None = None
    ) -> None:
        self._slots = slots
        self._outcomes = outcomes or {}
        self._attempts: dict[Key, _Attempt] = {}
        self._journal = [] if journal is None else journal
        self.submitted: list[TrialSpec] = []
        self.late: list[Event] = []
        self.epochs = 0
        self.most_at_once = 0
        self.is_stopped = False

    @property
    def slots(self) -> int:
        """Return how many attempts can run at once."""
        return self._slots

    def probe_precision(self, is_over: Callable[[], bool] = lambda: False) -> ProbeResult | None:
        """Return invented measurements."""
        return None if is_over() else PROBED

    def submit(self, spec: TrialSpec) -> None:
        """Begin an attempt; a slot must be free."""
        assert not self.is_stopped
        assert len(self._attempts) < self._slots
        self._attempts[spec.key] = _Attempt(spec, toy_training(spec, self._outcomes.get(spec.key)))
        self.submitted.append(spec)
        self.most_at_once = max(self.most_at_once, len(self._attempts))
        self._journal.append(f"submit {spec.number}/{spec.attempt}")

    def wait(self, timeout: float) -> list[Event]:
        """Return the events in `late` and, given time, the next message of every attempt that waits for no answer."""
        events, self.late = self.late, []
        for attempt in list(self._attempts.values()):
            if attempt.is_ready and timeout > 0:
                events += self._step(attempt)
        return events

    def answer(self, report: EpochReport, *, prune: bool) -> None:
        """Answer an epoch's report; the attempt goes on, or ends there as pruned."""
        attempt = self._attempts[report.number, report.attempt]
        attempt.prune, attempt.is_ready = prune, True
        self._journal.append(f"answer {report.number}/{report.attempt} epoch {report.epoch}")

    def close(self) -> None:
        """Forget every attempt."""
        self._attempts.clear()
        self.is_stopped = True

    def _step(self, attempt: _Attempt) -> list[Event]:
        attempt.is_ready = False
        try:
            report = attempt.training.send(attempt.prune)
        except StopIteration as end:
            return self._end(attempt.spec, end.value)
        self.epochs += 1
        return [report]

    def _end(self, spec: TrialSpec, end: TrialResult | SimulatedOutcome) -> list[Event]:
        if end is SimulatedOutcome.STUCK:
            return []
        del self._attempts[spec.key]
        return [end if isinstance(end, TrialResult) else AttemptLost(*spec.key, "signal SIGKILL")]
