"""Asynchronous successive halving that pauses trials and goes back to them."""

from collections.abc import Callable, Iterable

from fashion_study.store.trials import TrialRecord
from fashion_study.trial import TrialState


class AsynchronousHalving:
    """ASHA (Li et al. 2020, arXiv 1810.05934): trials are paused at rungs, and the best of each rung go on.

    The rungs are 1, 3, 9, ... epochs, as long as more than half of the most that a trial can have is left after them.
    Of the trials that have reached a rung, one in `reduction` may go on: those with the highest value up to there. So
    what looked bad beside the first few can still go on when more have reached the rung, and nothing waits for a rung
    to fill. When no more trials are to begin, the best of each rung goes on too. A trial is complete after its own
    epochs.
    """

    def __init__(self, most_epochs: int, reduction: int = 3) -> None:
        self.reduction = reduction
        self.rungs: list[int] = []
        rung = 1
        while 2 * rung < most_epochs:
            self.rungs.append(rung)
            rung *= reduction

    def goes_on(self, number: int, epoch: int, records: Callable[[], Iterable[TrialRecord]]) -> bool:
        """Return whether a trial that has just reached an epoch may train the next one."""
        return epoch not in self.rungs or number in self._best(epoch, records(), may_begin=True)

    def to_go_on(self, records: Iterable[TrialRecord], *, may_begin: bool) -> TrialRecord | None:
        """Return the best paused trial of the highest rung that has earned it, if there is one.

        Unless new trials `may_begin` the best of a rung has: else a short study would end with nothing complete.
        """
        records = tuple(records)
        paused = {record.number: record for record in records if record.state is TrialState.PAUSED}
        for rung in reversed(self.rungs if paused else ()):
            for number in self._best(rung, records, may_begin=may_begin):
                if number in paused and paused[number].paused_at == rung:
                    return paused[number]
        return None

    def _best(self, rung: int, records: Iterable[TrialRecord], *, may_begin: bool) -> list[int]:
        """Return the trials that may go on from a rung, the best first."""
        reached = [record for record in records if rung in record.curve]
        allowed = len(reached) // self.reduction
        if not (may_begin or allowed):
            reached = [record for record in reached if record.state not in (TrialState.FAILED, TrialState.PRUNED)]
            allowed = 1
        values = sorted(((record.best_until[rung], -record.number) for record in reached), reverse=True)
        return [-number for _, number in values[:allowed]]
