"""The intervals and the test agree with what is published and with SciPy."""

import itertools
import math
from statistics import mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_ind

from benchmarks.engines import sign_flip_p
from fashion_study.statistics import (
    paired_interval,
    pooled_deviation,
    student_interval,
    student_margin,
    wilson_interval,
)

counts = st.integers(min_value=0, max_value=60)


def test_the_paired_interval_is_the_published_one() -> None:
    # Agresti, An Introduction to Categorical Data Analysis, 8.1: 944 of 1,600 approved, later 880; (-0.06, -0.02).
    low, high = paired_interval(86, 150, 1600, 0.95)
    assert (round(low, 2), round(high, 2)) == (-0.06, -0.02)


def test_the_paired_interval_is_the_adjusted_wald_interval() -> None:
    both, first, second, neither = (cell + 0.5 for cell in (50, 12, 4, 10))
    n = both + first + second + neither
    share = (first - second) / n
    half = 1.959964 * math.sqrt(((first + second) / n - share**2) / n)
    assert paired_interval(12, 4, 76, 0.95) == pytest.approx((share - half, share + half), abs=1e-6)


@given(counts, counts, counts)
def test_the_paired_interval_turns_with_the_models(first: int, second: int, agreed: int) -> None:
    images = first + second + agreed + 1
    low, high = paired_interval(first, second, images, 0.95)
    assert -1 <= low < high <= 1
    assert low <= (first - second) / (images + 2) <= high
    assert paired_interval(second, first, images, 0.95) == pytest.approx((-high, -low))


def test_wilson_agrees_with_the_formula() -> None:
    z, right, n = 1.959964, 81, 263
    centre = (right + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(right * (n - right) / n + z**2 / 4)
    assert wilson_interval(right, n) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_the_paired_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    only_first, only_second, both = 0.08, 0.05, 0.8
    draws = rng.multinomial(1000, (only_first, only_second, both, 1 - only_first - only_second - both), size=2000)
    intervals = [paired_interval(int(first), int(second), 1000) for first, second, *_ in draws]
    covered = np.mean([low <= only_first - only_second <= high for low, high in intervals])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_student_s_bounds_are_those_of_the_t_test() -> None:
    values = [0.89, 0.90, 0.93]
    expected = ttest_1samp(values, 0)
    assert student_interval(values) == pytest.approx(tuple(expected.confidence_interval()))
    lower = ttest_1samp(values, 0, alternative="greater").confidence_interval().low
    pooled = pooled_deviation([values, [0.5]])
    assert pooled is not None
    assert mean(values) - student_margin(*pooled, len(values)) == pytest.approx(lower)


def test_two_means_are_compared_as_by_the_t_test() -> None:
    first, second = [0.89, 0.90, 0.93, 0.91], [0.88, 0.89]
    pooled = pooled_deviation([first, second])
    assert pooled is not None
    lower = ttest_ind(first, second, alternative="greater").confidence_interval().low
    margin = student_margin(*pooled, 1 / (1 / len(first) + 1 / len(second)))
    assert mean(first) - mean(second) - margin == pytest.approx(lower)
    assert pooled_deviation([[0.5], []]) is None


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=7))
def test_the_sign_flip_p_counts_every_choice_of_signs(differences: list[int]) -> None:
    signs = itertools.product((1, -1), repeat=len(differences))
    as_far = [
        abs(sum(sign * each for sign, each in zip(way, differences, strict=True))) >= abs(sum(differences))
        for way in signs
    ]
    assert sign_flip_p(differences) == pytest.approx(mean(as_far))
