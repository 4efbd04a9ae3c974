"""The promises of what a report concludes: edges, savings, gains and their intervals."""

import re
from dataclasses import replace

import numpy as np
import pytest

from fashion_study.report.charts import MINUS, change_table, confusion_table
from fashion_study.report.facts import Edge, ModelFacts, Reference, Size, edges, gain, savings, smallest_nearly_best
from fashion_study.space.file import load_space
from fashion_study.space.space import SearchSpace
from fashion_study.study.leaderboard import rank
from fashion_study.trial import ParamValue, TrialState
from tests.support.study_facts import SPACE, facts, model, params, record


def two_classes(confusion: list[list[int]], mistakes: set[int] | None = None) -> ModelFacts:
    counts = np.array(confusion, dtype=np.int64)
    return ModelFacts("run", 1, None, {}, ("Bag", "Shirt"), counts, None if mistakes is None else frozenset(mistakes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"filters_1": 64}, {"filters_1": "highest"}),
        ({"filters_1": 16}, {"filters_1": "lowest"}),
        ({"filters_1": 40}, {}),
        ({"learning_rate": 1e-2}, {"learning_rate": "highest"}),
        # On the log scale 2 % of the range from 3e-5 to 1e-2 are a factor of 1.12.
        ({"learning_rate": 3.3e-5}, {"learning_rate": "lowest"}),
        ({"learning_rate": 3.5e-5}, {}),
        ({"learning_rate": 9e-3}, {"learning_rate": "highest"}),
        ({"learning_rate": 8.8e-3}, {}),
        ({"batch_size": 32, "epochs": 20}, {"batch_size": "lowest", "epochs": "highest"}),
        ({"batch_size": 128}, {}),
    ],
)
def test_a_value_at_the_end_of_its_range_is_named_with_the_end(
    changes: dict[str, ParamValue], expected: dict[str, str]
) -> None:
    assert {edge.name: edge.side for edge in edges(SPACE, params(decay=1e-4, **changes))} == expected


def test_what_has_nothing_but_edges_or_no_order_is_not_warned_of() -> None:
    parameters = {
        "filters_1": {"type": "int", "low": 4, "high": 8, "step": 4, "why": "two values"},
        "batch_size": {"type": "categorical", "choices": [32, 64], "why": "two choices"},
        "optimizer": {"type": "categorical", "choices": ["adam", "rmsprop", "sgd"], "why": "no order"},
        "epochs": {"type": "int", "low": 3, "high": 3, "why": "one value"},
    }
    baseline: dict[str, ParamValue] = {"filters_1": 4, "batch_size": 32, "optimizer": "adam", "epochs": 3}
    fixed = {name: value for name, value in SPACE.baseline_point.model_dump().items() if name not in baseline}
    space = SearchSpace.model_validate(
        {"name": "narrow", "purpose": "Edges only.", "baseline": baseline, "parameters": parameters, "fixed": fixed}
    )
    assert edges(space, baseline) == ()


def test_an_end_beyond_which_nothing_is_legal_is_no_edge() -> None:
    wide = load_space("wide")
    none = {"dropout": 0.0, "shift": 0, "erasing": 0.0, "label_smoothing": 0.0, "weight_decay": 0.0}
    assert edges(wide, wide.baseline | none | {"learning_rate": 1e-2}) == (
        Edge("filters_1", 32, "lowest", 32),
        Edge("filters_3", 64, "lowest", 64),
        Edge("batch_size", 512, "highest", 512),
    )
    assert [edge.name for edge in edges(wide, wide.baseline | {"dropout": 0.3, "learning_rate": 1e-2})][2] == "dropout"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({0: 50_000, 1: 90_000, 2: 100_000, 3: 60_000}, 3),
        ({0: 50_000, 1: 60_000, 2: 100_000, 3: 60_000}, 1),  # Of equally small ones the better.
        ({0: 50_000, 1: 100_000, 2: 100_000, 3: 100_000}, None),
        ({0: 50_000, 1: 90_000, 3: 60_000}, None),  # The best one's is not known.
        ({}, None),
    ],
)
def test_the_smallest_model_within_half_a_point_of_the_best_is_found(
    parameters: dict[int, float], expected: int | None
) -> None:
    objectives = [0.8, 0.896, 0.9, 0.8951, 0.87]
    ended = [record(number, TrialState.COMPLETE, [value]) for number, value in enumerate(objectives)]
    sizes = {number: Size(count, 0.1) for number, count in parameters.items()}
    found = smallest_nearly_best(facts(records=rank(ended), sizes=sizes))
    assert (None if found is None else found.number) == expected


def test_savings_count_the_epochs_that_were_not_trained() -> None:
    ended = (
        record(0, TrialState.COMPLETE, [0.8] * 10, epochs=10),
        record(1, TrialState.PRUNED, [0.5], epochs=20),
        record(2, TrialState.PRUNED, [0.5, 0.9, 0.85, 0.84], epochs=16),
        record(3, TrialState.PAUSED, [0.6], epochs=4),
        record(4, TrialState.FAILED, [0.1], epochs=20),
        record(5, TrialState.RUNNING, [0.2], epochs=20),
    )
    found = savings(facts(records=ended))
    assert (found.stopped, found.paused, found.epochs_asked, found.epochs_saved) == (3, 1, 50, 34)
    assert found.share == pytest.approx(0.68)
    assert found.highest_stopped == (0.84, 2)


def test_inherited_epochs_are_neither_asked_nor_saved() -> None:
    promoted = replace(record(0, TrialState.COMPLETE, [0.8], epochs=3), curve={2: 0.7, 3: 0.8})
    stopped = replace(record(1, TrialState.PRUNED, [0.5], epochs=9), curve={4: 0.5})
    found = savings(facts(records=(promoted, stopped)))
    assert (found.epochs_asked, found.epochs_saved) == (2 + 6, 5)


def test_where_nothing_was_stopped_nothing_was_saved() -> None:
    found = savings(facts(records=()))
    assert (found.stopped, found.share, found.highest_stopped) == (0, 0.0, None)


def test_a_gain_is_paired_where_both_runs_name_their_mistakes() -> None:
    first, second = two_classes([[48, 2], [3, 47]], {1, 2, 3, 4, 5}), two_classes([[45, 5], [5, 45]], set(range(10)))
    found = gain(first, second)
    assert found.difference == pytest.approx(0.05)
    assert (found.only_first, found.only_second, found.images) == (5, 0, 100)
    apart = gain(replace(first, mistakes=None), second)
    assert apart.only_first is None
    assert apart.low < found.low < found.difference < found.high < apart.high


def test_independent_accuracies_are_compared_as_newcombe_does() -> None:
    # Newcombe 1998, table II, example (a): 56/70 against 48/80 has 0.0524 to 0.3339 by method 10.
    first, second = two_classes([[56, 14], [0, 0]]), two_classes([[48, 32], [0, 0]])
    found = gain(first, second)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_recall_is_that_of_the_rows_and_0_without_images() -> None:
    assert two_classes([[3, 1], [0, 0]]).recall == {"Bag": 0.75, "Shirt": 0.0}


def colours(table: str) -> dict[str, tuple[str, str]]:
    """Return the background and the text colour of each cell, by its row and column."""
    found: dict[str, tuple[str, str]] = {}
    for cells, background, colour in re.findall(r"(#T_[^{]*)\{\s*background-color: (#\w+);\s*color: (#\w+);", table):
        found |= dict.fromkeys(re.findall(r"row\d+_col\d+", cells), (background, colour))
    return found


def counts(table: str) -> list[tuple[str, str]]:
    """Return the class and the text of each cell."""
    return re.findall(r'<td [^>]*class="data row\d+ col\d+ ?(right)?"[^>]*>([^<]*)</td>', table)


def test_the_confusion_table_shows_every_count_in_its_cell() -> None:
    table = confusion_table(two_classes([[90, 10], [0, 100]]))
    assert counts(table) == [("right", "90"), ("", "10"), ("", "0"), ("right", "100")]
    assert re.findall(r">(Bag|Shirt)</th>", table) == ["Bag", "Shirt", "Bag", "Shirt"]
    shown = colours(table)
    assert shown["row1_col1"] == ("#005288", "#f1f1f1")
    assert shown["row1_col0"][1] == "#000000"


def test_the_change_is_blue_where_the_best_model_is_better() -> None:
    best, baseline = two_classes([[95, 5], [12, 88]]), two_classes([[90, 10], [10, 90]])
    table = change_table(best, Reference(baseline, "the baseline", "there is no other"))
    assert [text for _, text in counts(table)] == ["+5", f"{MINUS}5", "+2", f"{MINUS}2"]

    def is_blue(colour: str) -> bool:
        return int(colour[5:7], 16) > int(colour[1:3], 16)

    blue = [is_blue(colours(table)[f"row{row}_col{column}"][0]) for row in (0, 1) for column in (0, 1)]
    assert blue == [True, True, False, False]


def test_the_best_model_need_not_be_the_highest_score() -> None:
    study = facts(best=model(1, 0.882, repeat=2))
    assert study.best_record is not None
    assert study.highest is not None
    assert (study.best_record.number, study.highest.number) == (1, 2)
