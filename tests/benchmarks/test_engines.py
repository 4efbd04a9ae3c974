"""A comparison of engines: its conclusions, its refusals, and that it runs and continues."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest

from benchmarks import engines
from benchmarks.engines import (
    CONTENDERS,
    ComparisonConfig,
    Search,
    compare_engines,
    comparisons,
    figure,
    search_within,
    table,
)
from fashion_study.errors import BadInputError
from fashion_study.store.trials import TrialRecord
from fashion_study.testing.memory import RecordingObserver
from fashion_study.trial import TrialState

BEST = {"a": (0.90, 0.92, 0.94), "random": (0.80, 0.90, 0.91), "b": (0.70, 0.92, 0.91)}
TRIALS = {"a": 10.0, "random": 5.0, "b": 7.5}


def record(number: int, epochs: range, objective: float | None) -> TrialRecord:
    state = TrialState.PRUNED if objective is None else TrialState.COMPLETE
    return TrialRecord(number, state, {}, 1, "run", objective, dict.fromkeys(epochs, 0.5))


def test_a_search_counts_every_epoch_and_stops_at_the_budget() -> None:
    records = [
        record(3, range(1, 11), 0.99),
        record(0, range(1, 5), 0.80),
        record(1, range(1, 3), None),
        record(2, range(3, 5), 0.85),  # It went on from an earlier one's model, and took two epochs of its own.
    ]

    search = search_within("a", 0, records, budget=10)

    assert search.best_after == ((4, 0.80), (6, 0.80), (8, 0.85))
    assert (search.best, search.trials) == (0.85, 3)


def test_comparisons_pair_the_seeds_and_put_the_best_mean_first() -> None:
    found = comparisons(BEST, TRIALS, "random")

    assert [comparison.contender for comparison in found] == ["a", "random", "b"]
    winner, reference, _ = found
    assert winner.difference == pytest.approx(0.05)
    low, high = winner.interval
    # Student's t with two degrees of freedom: 4.303 standard errors of (0.10, 0.02, 0.03).
    assert (low, high) == pytest.approx((0.05 - 4.303 * 0.025166, 0.05 + 4.303 * 0.025166), abs=1e-4)
    # Of the eight ways to swap, only all and none are as far from 0.
    assert winner.p == 2 / 8
    assert (reference.difference, reference.p) == (0.0, 1.0)


def test_the_table_shows_points_of_a_hundred() -> None:
    row = table(comparisons(BEST, TRIALS, "random")).iloc[0]

    assert row["contender"] == "a"
    assert (row["mean best"], row["lowest"], row["highest"], row["difference"]) == (92.0, 90.0, 94.0, 5.0)


def test_the_figure_has_a_line_for_every_contender() -> None:
    searches = [Search(name, seed, 2, ((4, 0.5), (9, 0.6 + seed / 10))) for name in CONTENDERS for seed in (0, 1)]

    (axes,) = figure(searches, 10).axes

    assert [line.get_label() for line in axes.get_lines()] == list(CONTENDERS)
    for line in axes.get_lines():
        assert np.asarray(line.get_ydata()).tolist()[3:] == pytest.approx([50.0] * 5 + [65.0] * 2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seeds": 1}, "Expected 2 to 16"),
        ({"epochs": 2}, "Expected at least 3"),
        ({"space": "no-such-space"}, "no-such-space"),
    ],
)
def test_settings_that_allow_no_comparison_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        replace(ComparisonConfig(space="smoke", dataset="digits"), **changes).check()


def test_the_studies_differ_only_in_what_is_compared() -> None:
    config = ComparisonConfig(space="smoke", dataset="digits", epochs=30)
    studies = [config.study(contender, seed) for contender, seed in itertools.product(CONTENDERS, (0, 1))]

    assert len({study.study for study in studies}) == len(studies)
    compared = {"engine", "sampler", "pruner", "seed", "study"}
    assert len({study.model_dump_json(exclude=compared) for study in studies}) == 1
    assert {study.epoch_budget for study in studies} == {30}


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_a_comparison_is_recorded_once_and_registers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = {name: CONTENDERS[name] for name in ("keras-tuner-hyperband", "random")}
    monkeypatch.setattr(engines, "CONTENDERS", two)
    config = ComparisonConfig(
        "smoke", "digits", epochs=5, seeds=2, workers=1, precision="float32", store=tmp_path / "mlruns"
    )

    comparison = compare_engines(config, RecordingObserver())

    from fashion_study.store.store import open_store

    client = open_store(config.store).client()
    run = client.get_run(comparison.run_id)
    assert run.data.tags["winner"] == comparison.winner
    assert {file.path for file in client.list_artifacts(comparison.run_id)} == {
        "against_random.csv",
        "against_winner.csv",
        "best_by_epochs.png",
        "searches.json",
    }
    drawn = json.loads(Path(client.download_artifacts(comparison.run_id, "searches.json", str(tmp_path))).read_text())
    assert len(drawn) == 4
    for name in two:
        best = mean(search.best for search in comparison.searches if search.contender == name)
        assert run.data.metrics[f"best_{name}"] == pytest.approx(best)

    assert client.search_registered_models() == []

    observer = RecordingObserver()
    again = compare_engines(config, observer)
    assert (again.searches, again.run_id) == (comparison.searches, comparison.run_id)
    assert observer.started == []
