"""Asynchronous successive halving that pauses trials and goes back to them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fashion_study.store.trials import Key, TrialRecord
from fashion_study.trial import TrialState

# One in so many trials goes on from a rung, and each rung is as many times the one before.
REDUCTION = 3


def rungs_of(most_epochs: int) -> list[int]:
    """Return the epochs after which trials are compared: 1, 3, 9, ..., while more than half of the most is left."""
    rungs = (REDUCTION**power for power in range(most_epochs.bit_length()))
    return [rung for rung in rungs if 2 * rung < most_epochs]


class AsynchronousHalving:
    """ASHA (Li et al. 2020, arXiv 1810.05934): trials are paused at rungs, and the best of each rung go on.

    The rungs are 1, 3, 9, ... epochs, as long as more than half of the most that a trial can have is left after them.
    Of the trials that have reached a rung, one in REDUCTION may go on: those with the highest value up to there. So
    what looked bad beside the first few can still go on when more have reached the rung, and nothing waits for a rung
    to fill. When no more trials are to begin, the best of each rung goes on too. A trial is complete after its own
    epochs.
    """

    def __init__(self, most_epochs: int, ranked: Callable[[Key], Callable[[], Sequence[Any]]]) -> None:
        # Of each rung the trials that have reached it, and those of them that are paused there, the best last.
        self._reached = {rung: ranked(partial(_reached, rung)) for rung in rungs_of(most_epochs)}
        self._paused = {rung: ranked(partial(_paused, rung)) for rung in rungs_of(most_epochs)}

    def goes_on(self, record: TrialRecord, epoch: int) -> bool:
        """Return whether a trial that has just reached an epoch may train the next one."""
        if epoch not in self._reached:
            return True
        last = self._last_to_go_on(epoch, may_begin=True)
        return last is not None and _reached(epoch, record) >= last

    def to_go_on(self, *, may_begin: bool) -> int | None:
        """Return the best paused trial of the highest rung that has earned it, if there is one.

        Unless new trials `may_begin` the best of a rung has: else a short study would end with nothing complete.
        """
        for rung in reversed(self._paused):
            paused, last = self._paused[rung](), self._last_to_go_on(rung, may_begin=may_begin)
            if paused and last is not None and paused[-1] >= last:
                return int(-paused[-1][1])
        return None

    def _last_to_go_on(self, rung: int, *, may_begin: bool) -> Any:
        """Return the place of the last trial that may go on from a rung, None where none may."""
        reached = self._reached[rung]()
        if allowed := len(reached) // REDUCTION:
            return reached[-allowed]
        left = [] if may_begin else [place for place in reached if not place[2]]
        return left[-1] if left else None


def _reached(rung: int, record: TrialRecord) -> tuple[float, int, bool] | None:
    """Return the place of a trial at a rung: its best value up to there, the earlier first, and whether it is over."""
    if rung not in record.curve:
        return None
    return record.best_until[rung], -record.number, record.state in (TrialState.FAILED, TrialState.PRUNED)


def _paused(rung: int, record: TrialRecord) -> tuple[float, int, bool] | None:
    return _reached(rung, record) if record.state is TrialState.PAUSED and record.paused_at == rung else None
