"""The promises of a worker's timesheet: every second after start-up is counted, once, where it went."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from fashion_study.trial import Hyperparameters, Precision, TimeSpent, TrialSpec
from fashion_study.worker.timesheet import Timesheet

TRIAL = TrialSpec(3, 1, Hyperparameters(), 0, "run", Precision.FLOAT32)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def work(clock: Clock) -> Callable[..., TimeSpent]:
    sheet = Timesheet(clock)

    def order(
        spec: TrialSpec, *, after: float, training: float, answer: float = 0.0, writing: float = 0.0
    ) -> TimeSpent:
        """Do what an order asks, `after` seconds of waiting for it."""
        clock.now += after
        sheet.begin(spec)
        clock.now += training
        with sheet.waiting():
            clock.now += answer
        clock.now += writing
        return sheet.end(writing)

    return order


def test_the_wait_for_an_order_and_for_answers_belongs_to_the_order(work: Callable[..., TimeSpent]) -> None:
    work(TRIAL, after=0, training=1)

    assert work(TRIAL, after=2, training=64, answer=1, writing=8) == TimeSpent(training=64, waiting=3, writing=8)


def test_before_its_first_order_a_worker_does_not_wait_since_the_study_still_starts(
    work: Callable[..., TimeSpent],
) -> None:
    assert work(TRIAL, after=30, training=4) == TimeSpent(training=4)


def test_a_worker_for_which_no_trial_is_left_does_not_wait_for_the_finalists(work: Callable[..., TimeSpent]) -> None:
    repeat = replace(TRIAL, repeat=1)
    work(TRIAL, after=0, training=4)

    assert work(repeat, after=60, training=4) == TimeSpent(training=4)
    assert work(repeat, after=1, training=4) == TimeSpent(training=4, waiting=1)


def test_what_several_orders_took_adds_up() -> None:
    spent = TimeSpent(1, 2, 4) + TimeSpent(8, 16, 32)

    assert spent == TimeSpent(9, 18, 36)
    assert spent.total == 63
