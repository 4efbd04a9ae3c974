"""The promises of the gates: figures as published, and each gate refuses for its own reason."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fashion_study.promotion.gates import (
    Gates,
    Paired,
    fewest_disagreements,
    mcnemar_p,
    smallest_significant_lead,
)

NAMES = ("Shirt", "Coat")
SIGNATURE = "Tensor('float32', (-1, 28, 28, 1)) -> Tensor('float32', (-1, 10))"
counts = st.integers(min_value=0, max_value=60)


def paired(both: int, only_challenger: int, only_champion: int, neither: int, label: int = 0) -> Paired:
    """Make predictions of two models for images of one class, by who gets how many right."""
    cells = (both, only_challenger, only_champion, neither)
    wrong = 1 - label
    challenger = np.repeat([label, label, wrong, wrong], cells)
    champion = np.repeat([label, wrong, label, wrong], cells)
    return Paired(np.full(sum(cells), label), challenger, champion)


def together(*parts: Paired) -> Paired:
    fields = ("labels", "challenger", "champion")
    return Paired(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))


@pytest.mark.parametrize(
    ("only_first", "only_second", "published", "places"),
    [
        # Computed on VassarStats, as quoted by the tests of statsmodels.
        (121, 59, 0.000004, 6),
        (70, 59, 0.378688, 6),
        (80, 59, 0.089452, 6),
        (30, 60, 0.00206, 6),
        (10, 30, 0.002221, 6),
        (10, 10, 1.0, 6),
        # Agresti (1990), p. 350: approval of the President's performance; exact p-value as R's exact2x2 gives it.
        (150, 86, 3.716e-05, 8),
    ],
)
def test_mcnemar_s_exact_p_is_the_published_one(
    only_first: int, only_second: int, published: float, places: int
) -> None:
    assert mcnemar_p(only_first, only_second) == pytest.approx(published, abs=0.5 * 10**-places)


@given(counts, counts)
def test_mcnemar_s_p_is_the_share_of_tosses_as_lopsided(only_first: int, only_second: int) -> None:
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail = Fraction(sum(math.comb(n, k) for k in range(fewer + 1)), 2**n)
    expected = float(min(Fraction(1), 2 * tail))
    assert mcnemar_p(only_first, only_second) == pytest.approx(expected)
    assert mcnemar_p(only_second, only_first) == pytest.approx(expected)


def test_models_that_never_disagree_are_no_evidence() -> None:
    assert mcnemar_p(0, 0) == 1.0


def test_more_right_answers_by_more_than_chance_pass() -> None:
    answer = Gates().accuracy(paired(300, 40, 10, 9), readings=1)
    assert answer.passed
    assert answer.value == pytest.approx(mcnemar_p(40, 10))
    assert "340 right answers against 310 of 359: +8.36 points" in answer.sentence


def test_a_lead_within_chance_is_refused_with_the_lead_needed() -> None:
    answer = Gates().accuracy(paired(300, 20, 12, 9), readings=1)
    assert not answer.passed
    needed = smallest_significant_lead(32, 0.05)
    assert f"With 32 disagreements a lead of {needed}" in answer.sentence


def test_fewer_right_answers_are_refused_however_significant() -> None:
    answer = Gates().accuracy(paired(300, 10, 40, 9), readings=1)
    assert not answer.passed
    assert isinstance(answer.value, float)
    assert answer.value < 0.05


def test_each_reading_of_the_holdout_lowers_the_limit() -> None:
    evidence = paired(300, 12, 3, 9)
    first, third = (Gates().accuracy(evidence, readings) for readings in (1, 3))
    assert (first.passed, third.passed) == (True, False)
    assert first.limit == 0.05
    assert third.limit == pytest.approx(0.05 / 3)
    assert "limit 0.017 (0.05 / 3 readings)" in third.sentence


def test_a_data_set_too_small_for_the_accuracy_gate_is_named_so() -> None:
    answer = Gates().accuracy(paired(350, 5, 0, 4), readings=1)
    assert not answer.passed
    assert "Too few images for this gate: the models disagree on 5, and at least 6" in answer.sentence


@pytest.mark.parametrize(("alpha", "fewest"), [(0.05, 6), (0.025, 7), (0.01, 8), (0.5, 3)])
def test_the_fewest_disagreements_can_be_significant(alpha: float, fewest: int) -> None:
    assert fewest_disagreements(alpha) == fewest
    assert mcnemar_p(fewest, 0) < alpha <= mcnemar_p(fewest - 1, 0)


@given(st.integers(min_value=0, max_value=400), st.integers(min_value=1, max_value=40))
def test_the_smallest_significant_lead_is_the_smallest(n: int, readings: int) -> None:
    alpha = 0.05 / readings
    lead = smallest_significant_lead(n, alpha)
    if lead is None:
        assert n < fewest_disagreements(alpha)
    else:
        assert mcnemar_p((n + lead) // 2, (n - lead) // 2) < alpha
        assert lead < 2 or mcnemar_p((n + lead) // 2 - 1, (n - lead) // 2 + 1) >= alpha


# A margin as narrow as the intervals, to see both at work.
NARROW = Gates(recall_margin=0.02)


def test_a_class_that_falls_beyond_its_interval_is_named() -> None:
    evidence = together(paired(900, 60, 5, 35), paired(900, 10, 70, 20, label=1))
    recalls = NARROW.class_recalls(evidence, NAMES)
    answer = NARROW.recall(recalls)
    assert [(recall.name, recall.images) for recall in recalls] == [("Shirt", 1000), ("Coat", 1000)]
    assert not answer.passed
    assert answer.value == recalls[1].high < -0.02
    assert answer.sentence.startswith("class Coat: -6.00 points")


def test_a_class_that_falls_within_interval_and_margin_passes() -> None:
    evidence = together(paired(900, 60, 5, 35), paired(900, 20, 45, 35, label=1))
    answer = NARROW.recall(NARROW.class_recalls(evidence, NAMES))
    assert answer.passed
    assert "the lowest change: class Coat: -2.50 points" in answer.sentence


def test_the_recall_gate_says_which_fall_it_cannot_see() -> None:
    small = NARROW.recall(NARROW.class_recalls(paired(30, 0, 5, 1), NAMES))
    large = NARROW.recall(NARROW.class_recalls(paired(995, 0, 5, 0), NAMES))
    assert small.passed, "5 of 36 images are 14 points, and still within what chance can do"
    assert "A fall of less than 16.7 points goes unseen with 36 images of a class" in small.sentence
    assert "goes unseen with 1,000 images" in large.sentence


def test_by_default_a_class_may_fall_as_far_as_a_seed_moves_it() -> None:
    by_chance = together(paired(900, 60, 5, 35), paired(700, 10, 115, 175, label=1))
    given_up = together(paired(900, 60, 5, 35), paired(700, 10, 140, 150, label=1))
    assert Gates().recall(Gates().class_recalls(by_chance, NAMES)).passed
    assert not Gates().recall(Gates().class_recalls(given_up, NAMES)).passed


def test_a_class_without_images_is_left_out() -> None:
    assert [recall.name for recall in Gates().class_recalls(paired(5, 1, 1, 1), NAMES)] == ["Shirt"]


@pytest.mark.parametrize(("parameters", "passed"), [(93_322, True), (500_000, True), (500_001, False)])
def test_a_model_with_too_many_parameters_is_refused(parameters: int, passed: bool) -> None:
    answer = Gates().parameters(parameters)
    assert (answer.passed, answer.value, answer.limit) == (passed, parameters, 500_000)
    assert f"{parameters:,} parameters" in answer.sentence


@pytest.mark.parametrize(("milliseconds", "passed"), [(0.1, True), (2.0, True), (2.01, False)])
def test_too_slow_a_model_is_refused_whatever_the_champion_takes(milliseconds: float, passed: bool) -> None:
    answers = [Gates().latency(milliseconds, champion) for champion in (0.1, 10.0)]
    assert {(answer.passed, answer.value, answer.limit) for answer in answers} == {(passed, milliseconds, 2.0)}
    assert "on one thread" in answers[0].sentence
    assert "on one thread" not in Gates().latency(milliseconds, 0.1, one_thread=False).sentence


@pytest.mark.parametrize(("moved", "passed"), [(0, True), (10, True), (11, False)])
def test_a_reloaded_model_that_predicts_otherwise_is_refused(moved: int, passed: bool) -> None:
    logged = np.array([[4000, 1000], [500, 4500]])
    found = logged + np.array([[moved, -moved], [0, 0]])
    answer = Gates().fidelity(logged, found, "validation")
    assert answer.passed is passed
    assert answer.value == moved / 10_000
    assert f"{moved} of 10,000 validation images predicted otherwise" in answer.sentence


def test_of_few_images_none_may_be_predicted_otherwise() -> None:
    logged = np.array([[100, 20], [30, 209]])
    answer = Gates().fidelity(logged, logged + np.array([[1, -1], [0, 0]]), "validation")
    assert not answer.passed
    assert "limit none of so few images (0.1 %)" in answer.sentence


def test_what_was_not_logged_is_not_taken_for_equal() -> None:
    answer = Gates().fidelity(None, np.eye(2, dtype=np.int64), "validation")
    assert (answer.passed, answer.value) == (False, None)
    assert answer.sentence.startswith("not logged")


@pytest.mark.parametrize("logged", [[[5, 0], [0, 6]], [[5, 0, 0], [0, 5, 0], [0, 0, 1]]])
def test_a_confusion_matrix_of_other_images_is_not_compared(logged: list[list[int]]) -> None:
    answer = Gates().fidelity(np.array(logged), np.array([[5, 0], [0, 5]]), "validation")
    assert not answer.passed
    assert "of other validation images" in answer.sentence


def test_the_same_signature_passes_with_and_without_a_champion() -> None:
    assert Gates.signature(SIGNATURE, SIGNATURE, SIGNATURE).passed
    assert Gates.signature(SIGNATURE, SIGNATURE, None).passed


def test_a_signature_new_to_the_champion_s_callers_is_refused() -> None:
    other = SIGNATURE.replace("28, 28", "32, 32")
    answer = Gates.signature(other, other, SIGNATURE)
    assert not answer.passed
    assert "its callers could not go on" in answer.sentence


def test_a_signature_that_is_not_the_model_s_is_refused() -> None:
    answer = Gates.signature("none", SIGNATURE, "none")
    assert not answer.passed
    assert "the model takes and gives" in answer.sentence


@pytest.mark.parametrize("wrong", [{"alpha": 0}, {"alpha": 1}, {"recall_margin": -1}, {"max_parameter": 5}])
def test_limits_that_make_no_sense_or_do_not_exist_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Gates.model_validate(wrong)


def test_the_limits_of_an_earlier_version_can_be_read() -> None:
    assert Gates.model_validate_json('{"alpha": 0.01, "max_latency_ratio": 4.0}') == Gates(alpha=0.01)
