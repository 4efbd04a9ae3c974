"""The promises of `--pruner successive-halving`: early looks, the better half goes on, no bad epoch ends a trial."""

from collections.abc import Sequence

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from fashion_study.engines.optuna_engine import BestSoFarHalving

SPACE: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}


class Race:
    """A study of trials that have already reported, and one more that is judged."""

    def __init__(self, *curves: Sequence[float], state: TrialState = TrialState.PRUNED) -> None:
        self.study = optuna.create_study(direction="maximize")
        for curve in curves:
            self.add(curve, state)

    def add(self, curve: Sequence[float], state: TrialState, **attrs: int) -> int:
        values = dict(enumerate(curve, start=1))
        trial = create_trial(
            state=state, params={"x": 0.5}, distributions=SPACE, intermediate_values=values, user_attrs=attrs
        )
        self.study.add_trial(trial)
        return len(self.study.trials) - 1

    def prunes(self, *curve: float, pruner: BestSoFarHalving | None = None) -> bool:
        number = self.add(curve, TrialState.RUNNING)
        return (pruner or BestSoFarHalving(20)).prune(self.study, self.study.trials[number])


def test_the_first_trial_at_a_rung_goes_on() -> None:
    assert not Race().prunes(0.1)


@pytest.mark.parametrize(("value", "prunes"), [(0.35, True), (0.55, False), (0.9, False), (0.1, True)])
def test_the_better_half_goes_on(value: float, prunes: bool) -> None:
    # Of the five with this one, two go on.
    assert Race([0.2], [0.4], [0.5], [0.6]).prunes(value) is prunes


def test_a_trial_as_good_as_the_others_goes_on() -> None:
    assert not Race([0.5], [0.5], [0.5]).prunes(0.5)


def test_one_unlucky_epoch_ends_nothing() -> None:
    race = Race([0.5, 0.6], [0.4, 0.55], [0.5, 0.58])
    assert not race.prunes(0.7, 0.1)
    assert race.prunes(0.3, 0.1)


@pytest.mark.parametrize(("epochs", "rungs"), [(1, []), (2, []), (3, [1]), (4, [1]), (5, [1, 2]), (20, [1, 2, 4, 8])])
def test_the_rungs_double_while_half_of_the_epochs_is_left(epochs: int, rungs: list[int]) -> None:
    good = [0.9] * epochs
    looks = [
        reached
        for reached in range(1, epochs + 1)
        if Race(good, good).prunes(*[0.1] * reached, pruner=BestSoFarHalving(epochs))
    ]
    assert looks == rungs


def test_those_that_did_not_come_to_a_rung_do_not_count_there() -> None:
    assert not Race([0.9], [0.8], [0.7, 0.3]).prunes(0.6, 0.7)


def test_reports_of_a_lost_attempt_after_the_end_do_not_count() -> None:
    race = Race()
    # Its first attempt came to the fourth epoch, the one that counts was pruned after the second.
    race.add([0.3, 0.3, 0.3, 0.3], TrialState.PRUNED, epochs_run=2)
    assert not race.prunes(0.1, 0.2, 0.2, 0.2)
    assert race.prunes(0.1, 0.2)


def test_a_trial_that_runs_counts_with_what_it_has_by_now() -> None:
    race, pruner = Race(), BestSoFarHalving(20)
    ahead = race.add([0.2, 0.2], TrialState.RUNNING)
    assert not race.prunes(0.5, pruner=pruner)
    # It is trained again, and better: an attempt that was interrupted leaves nothing that is known for good.
    race.study._storage.set_trial_intermediate_value(race.study.trials[ahead]._trial_id, 1, 0.9)
    assert race.prunes(0.5, pruner=pruner)


def test_it_judges_alike_after_a_restart() -> None:
    race, lasting = Race([0.2, 0.3], [0.4, 0.5], [0.5, 0.5], [0.6, 0.3]), BestSoFarHalving(20)
    for value in (0.1, 0.45, 0.7, 0.55, 0.3):
        number = race.add([value, value], TrialState.RUNNING)
        trial = race.study.trials[number]
        assert lasting.prune(race.study, trial) == BestSoFarHalving(20).prune(race.study, trial)
        race.study.tell(number, state=TrialState.PRUNED)
