"""The default pruner: successive halving by the best value so far."""

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from fashion_study.store.trials import last_epoch


class BestSoFarHalving(BasePruner):
    """Pruner that lets a trial pass a rung whose best value so far is in the better half of all trials at that rung.

    The rungs are 1, 2, 4, ... steps, as long as more than half of the most steps is left after them: a later rung
    could save little. They are the same for trials with fewer steps: to skip a rung in the second half of a trial's
    own steps costs more epochs than it gains (decision 0015). A trial is compared, when it reaches a rung, with those
    that have reached it before (asynchronous successive halving, Li et al. 2020, arXiv 1810.05934, but trials are
    stopped instead of paused). Optuna's own `SuccessiveHalvingPruner` compares the values of the rung's step alone, so
    that one unlucky epoch ends a good trial.
    """

    def __init__(self, most_steps: int) -> None:
        rungs = (2**power for power in range(most_steps.bit_length()))
        # For each rung the best values of finished trials, by number: these do not change any more.
        self._settled: dict[int, dict[int, float]] = {rung: {} for rung in rungs if 2 * rung < most_steps}

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether to stop a trial at its last step; higher values are better."""
        rung = trial.last_step
        if rung not in self._settled:
            return False
        own = _best_until(trial, rung)
        others = self._others(study, trial.number, rung)
        return sum(best > own for best in others) >= max(1, (len(others) + 1) // 2)

    def _others(self, study: Study, number: int, rung: int) -> list[float]:
        settled = self._settled[rung]
        bests = []
        for other in study.get_trials(deepcopy=False):
            best = settled.get(other.number)
            if best is None and rung in other.intermediate_values and rung <= last_epoch(other):
                best = _best_until(other, rung)
                if other.state.is_finished():
                    settled[other.number] = best
            if best is not None and other.number != number:
                bests.append(best)
        return bests


def _best_until(trial: FrozenTrial, step: int) -> float:
    return max(value for reached, value in trial.intermediate_values.items() if reached <= step)
