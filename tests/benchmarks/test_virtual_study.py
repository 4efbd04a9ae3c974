import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from benchmarks.curves import TABLE, Curve, CurveTable, Design, space_file
from benchmarks.record_curves import design_points
from benchmarks.table_executor import coordinates
from benchmarks.virtual_study import OneEpoch, Outcome, Strategy, replay
from fashion_study.space.file import load_space
from fashion_study.space.space import SearchSpace
from fashion_study.trial import ParamValue

SPACE = load_space(str(space_file(TABLE)))
# The same with nothing to say about epochs: every trial has them all, so that they can be counted beforehand.
FULL = SearchSpace.model_validate(
    SPACE.model_dump()
    | {
        "baseline": {name: value for name, value in SPACE.baseline.items() if name != "epochs"},
        "parameters": {name: spec for name, spec in SPACE.parameters.items() if name != "epochs"},
        "fixed": SPACE.fixed | {"epochs": 20},
    }
)
DESIGN = Design("baseline", SPACE.digest, 20, "data", 100, "split", 0)
SECONDS = 2.0


def rising_table(count: int) -> CurveTable:
    """Rise with each epoch towards a height of its own: the later in the design, the higher from the first epoch on."""
    curves = [
        Curve(
            place,
            params,
            place,
            tuple(0.5 + 0.4 * place / count - 0.1 / epoch for epoch in range(1, 21)),
            (1.0,) * 20,
            (SECONDS,) * 20,
        )
        for place, params in enumerate(design_points(SPACE, count - 1, seed=0))
    ]
    return CurveTable(DESIGN, (), tuple(curves))


def replayed(strategy: Strategy, table: CurveTable, seed: int = 0, space: SearchSpace = SPACE) -> Outcome:
    return replay(strategy, space, table, seed, trials=100)


def test_full_training_uses_every_row_once_and_finds_the_best() -> None:
    table = rising_table(24)

    outcome = replayed(Strategy("random", "none"), table, space=FULL)

    assert len(outcome.distances) == 24
    assert outcome.distances[0] == 0  # The baseline, which is in the table.
    assert outcome.end.epochs == 24 * 20
    assert outcome.end.best == table.curves[-1].accuracy[-1]
    assert [moment.best for moment in outcome.rises] == sorted({moment.best for moment in outcome.rises})
    assert outcome.early is not None
    assert outcome.early.epochs == 20 * 20


@pytest.mark.parametrize("seed", range(6))
def test_no_row_is_used_twice_however_near_it_is(seed: int) -> None:
    baseline = rising_table(2).curves[0]
    corner: dict[str, ParamValue] = {
        "filters_1": 16,
        "filters_2": 96,
        "filters_3": 96,
        "learning_rate": 1e-2,
        "batch_size": 64,
    }
    far_off = replace(baseline, place=1, params=corner, accuracy=(0.95,) * 20)

    outcome = replayed(Strategy("random", "none"), CurveTable(DESIGN, (), (baseline, far_off)), seed, FULL)

    assert outcome.end.best == 0.95


def test_the_objective_is_that_after_the_proposed_epochs() -> None:
    table = rising_table(1)

    outcome = replayed(Strategy("random", "none"), table)

    assert SPACE.baseline["epochs"] == 10
    assert outcome.end.best == table.curves[0].accuracy[9]
    assert outcome.end.epochs == 10


def test_more_workers_share_the_seconds_of_one() -> None:
    table = rising_table(24)

    alone = replayed(Strategy("random", "none", workers=1), table, space=FULL)
    four = replayed(Strategy("random", "none", workers=4), table, space=FULL)

    assert alone.end.seconds == SECONDS * 24 * 20
    assert four.end.epochs == alone.end.epochs
    assert four.end.seconds == alone.end.seconds / 4


def test_only_the_same_seed_replays_to_the_same_end() -> None:
    table, strategy = rising_table(24), Strategy("tpe", "hyperband", workers=2)

    assert replayed(strategy, table) == replayed(strategy, table)
    assert replayed(strategy, table) != replayed(strategy, table, seed=1)


@pytest.mark.parametrize("pruner", ["successive-halving", "Optuna's halving 1, 3, 9"])
def test_a_pruner_saves_epochs(pruner: str) -> None:
    table = rising_table(24)

    assert (
        replayed(Strategy("random", pruner), table).end.epochs
        < replayed(Strategy("random", "none"), table).end.epochs / 2
    )


def test_one_epoch_finishes_the_best_after_one_epoch() -> None:
    table = rising_table(24)

    outcome = replayed(Strategy("random", OneEpoch(24, finished=2), workers=2), table, space=FULL)

    # The project's baseline, which is never pruned, then the rest once, then the best two behind their first epoch.
    assert outcome.end.epochs == 20 + 23 + 2 * 19
    assert outcome.end.best == table.curves[-1].accuracy[-1]
    assert outcome.end.seconds == SECONDS * (20 + 2 + 19)  # 20 and 21 side by side, then the best two.


def test_one_epoch_finishes_to_the_last_epoch() -> None:
    table = rising_table(24)

    outcome = replayed(Strategy("random", OneEpoch(24, finished=2)), table)

    assert outcome.end.epochs == 10 + 23 + 2 * 19  # The baseline has ten of its own.
    assert outcome.end.best == table.curves[-1].accuracy[-1]


def test_a_study_ends_early_with_target_and_default_trials() -> None:
    table = rising_table(40)

    outcome = replay(Strategy("random", "none"), SPACE, table, seed=0, trials=40, target=0.1)

    assert len(outcome.distances) in (20, 21)  # One may have begun beside the last.
    assert outcome.reached(0.1) == outcome.rises[0]
    assert outcome.reached(0.99) is None


def test_a_diverged_row_costs_its_epochs_and_counts_for_nothing() -> None:
    best = rising_table(1).curves[0]
    diverged = Curve(1, best.params | {"filters_1": 40}, 1, (0.99,), (1.0,), (SECONDS, 5.0))
    table = CurveTable(DESIGN, (), (best, diverged))

    outcome = replayed(Strategy("random", "none"), table)

    assert outcome.end.best == best.accuracy[9]
    assert outcome.end.epochs == 10 + 1
    assert outcome.end.seconds == SECONDS * 11 + 5.0


def test_distances_follow_the_space_s_scales() -> None:
    low = {"filters_1": 16, "filters_2": 32, "filters_3": 32, "learning_rate": 3e-5, "batch_size": 64}
    middle = low | {"learning_rate": math.sqrt(3e-5 * 1e-2), "filters_1": 32}

    def distance(a: Mapping[str, ParamValue], b: Mapping[str, ParamValue]) -> float:
        return float(sum((coordinates(SPACE, a) - coordinates(SPACE, b)) ** 2) ** 0.5)

    assert distance(low, middle) == pytest.approx(math.sqrt(0.5))
    assert distance(low, low | {"batch_size": 1024}) == pytest.approx(1.0)
    assert distance(low, low | {"batch_size": 128}) == pytest.approx(1.0)
