"""The promises of the pruner that pauses trials and goes back to them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from fashion_study.engines.asha import AsynchronousHalving
from fashion_study.store.trials import Key, TrialRecord
from fashion_study.trial import TrialState


def trial(number: int, *values: float, state: TrialState = TrialState.PAUSED) -> TrialRecord:
    paused_at = len(values) if state is TrialState.PAUSED else 0
    return TrialRecord(number, state, {}, 1, f"run-{number}", None, dict(enumerate(values, 1)), paused_at=paused_at)


def halving_of(*records: TrialRecord, most: int = 20) -> AsynchronousHalving:
    def ranked(key: Key) -> Callable[[], Sequence[Any]]:
        return lambda: sorted(known for record in records if (known := key(record)) is not None)

    return AsynchronousHalving(most, ranked)


def test_a_trial_stops_at_rungs_alone() -> None:
    worst = [*(trial(number, 0.9) for number in range(8)), trial(8, *[0.1] * 9)]
    assert [epoch for epoch in range(1, 20) if not halving_of(*worst).goes_on(worst[8], epoch)] == [1, 3, 9]


def test_the_first_trials_wait_for_others() -> None:
    assert not halving_of(trial(0, 0.5)).goes_on(trial(0, 0.5), 1)
    assert halving_of(trial(0, 0.5), trial(1, 0.6)).to_go_on(may_begin=True) is None


def test_where_no_others_come_the_best_of_a_rung_goes_on() -> None:
    two = [trial(0, 0.5), trial(1, 0.6)]

    assert halving_of(*two).to_go_on(may_begin=False) == 1
    assert halving_of(two[0], trial(1, 0.6, state=TrialState.COMPLETE)).to_go_on(may_begin=False) is None
    assert halving_of(two[0], trial(1, 0.6, state=TrialState.FAILED)).to_go_on(may_begin=False) == 0


def test_the_best_third_of_a_rung_goes_on() -> None:
    six = [trial(number, value) for number, value in enumerate((0.5, 0.7, 0.6, 0.9, 0.8, 0.4))]

    assert [record.number for record in six if halving_of(*six).goes_on(record, 1)] == [3, 4]
    assert halving_of(*six).to_go_on(may_begin=True) == 3


def test_what_was_passed_over_goes_on_when_more_have_come() -> None:
    three = [trial(0, 0.9, 0.9, 0.9, state=TrialState.COMPLETE), trial(1, 0.8), trial(2, 0.1)]
    assert halving_of(*three).to_go_on(may_begin=True) is None

    six = [*three, *(trial(number, 0.2) for number in (3, 4, 5))]

    assert halving_of(*six).to_go_on(may_begin=True) == 1


def test_the_highest_rung_comes_first() -> None:
    low = [trial(number, 0.99) for number in range(6)]
    high = [trial(number, 0.5, 0.5, value) for number, value in ((6, 0.6), (7, 0.7), (8, 0.8))]

    assert halving_of(*low, *high).to_go_on(may_begin=True) == 8


def test_a_rung_counts_the_best_value_up_to_it() -> None:
    unlucky = trial(0, 0.9, 0.9, 0.1)
    others = [trial(1, 0.5, 0.5, 0.5), trial(2, 0.5, 0.5, 0.6)]

    assert halving_of(unlucky, *others).goes_on(unlucky, 3)
    assert halving_of(unlucky, *others).to_go_on(may_begin=True) == 0


def test_of_equal_trials_the_earlier_goes_on() -> None:
    equal = [trial(number, 0.5) for number in (2, 1, 3)]
    assert halving_of(*equal).to_go_on(may_begin=True) == 1


@pytest.mark.parametrize(("most", "rungs"), [(1, []), (2, []), (3, [1]), (6, [1]), (7, [1, 3]), (19, [1, 3, 9])])
def test_there_is_no_rung_where_little_is_left_to_save(most: int, rungs: list[int]) -> None:
    worst = [*(trial(number, *[0.9] * 9) for number in range(8)), trial(8, *[0.1] * 9)]
    halving = halving_of(*worst, most=most)
    assert [epoch for epoch in range(1, 10) if not halving.goes_on(worst[8], epoch)] == rungs


def test_a_trial_that_was_once_further_goes_on_from_where_it_is_paused() -> None:
    # It lost its checkpoint after the fifth epoch, began anew and was paused after the first.
    further = replace(trial(0, 0.9, 0.9, 0.9, 0.9, 0.9), paused_at=1)
    others = [trial(number, 0.1) for number in (1, 2)]

    assert halving_of(further, *others).to_go_on(may_begin=True) == 0
