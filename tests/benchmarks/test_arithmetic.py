import pytest

from benchmarks.endurance import Sample, growth_per_attempt
from benchmarks.overhead import cost_of
from benchmarks.training import training_flops
from fashion_study.trial import Hyperparameters


def test_two_runs_separate_a_trial_s_cost_from_an_epoch_s() -> None:
    # Ten trials of 50 ms each, with 10 and with 120 epochs of 8 ms.
    cost = cost_of((0.58, 10), (1.46, 120), trials=10)

    assert (cost.per_trial, cost.per_epoch) == pytest.approx((50, 8))


def test_a_training_step_is_counted_layer_by_layer() -> None:
    conv_1 = 26 * 26 * 32 * (3 * 3)
    conv_2 = 11 * 11 * 64 * (3 * 3 * 32)
    conv_3 = 3 * 3 * 64 * (3 * 3 * 64)
    dense, probabilities = 576 * 64, 64 * 10
    assert (conv_1, conv_2, conv_3, dense, probabilities) == (194_688, 2_230_272, 331_776, 36_864, 640)

    # Twice for the first layer, whose inputs need no gradient, three times for the others.
    assert training_flops(Hyperparameters()) == 2 * (2 * 194_688 + 3 * 2_599_552) == 16_376_064


def test_growth_is_measured_after_a_worker_s_first_attempts() -> None:
    # Two workers: this one has every second trial. Its libraries come with the first attempts.
    held = [Sample(moment, closed=2 * moment, mib=1000 + 7 * moment) for moment in range(2, 12)]
    first = [Sample(moment, closed=2 * moment, mib=400 * moment) for moment in range(2)]

    assert growth_per_attempt([*first, *held], workers=2) == pytest.approx(7)
    assert growth_per_attempt(held[:5], workers=2) is None
