"""The promises of the leaderboard: the best first, nobody left out."""

import math

from fashion_study.store.trials import TrialRecord
from fashion_study.study.leaderboard import rank, table
from fashion_study.trial import FailReason, ParamValue, TrialState


def record(
    number: int,
    state: TrialState = TrialState.COMPLETE,
    objective: float | None = None,
    curve: dict[int, float] | None = None,
    reason: FailReason | None = None,
) -> TrialRecord:
    params: dict[str, ParamValue] = {"filters_1": 8, "learning_rate": 0.001 * (number + 1)}
    return TrialRecord(number, state, params, 1, f"run-{number}", objective, curve or {}, reason, 1.25)


RECORDS = (
    record(0, objective=0.8, curve={1: 0.5, 2: 0.8}),
    record(1, TrialState.FAILED, reason=FailReason.DIVERGED),
    record(2, TrialState.PRUNED, curve={1: 0.9}),
    record(3, objective=0.9, curve={1: 0.9}),
    record(4, TrialState.WAITING),
    record(5, TrialState.PRUNED, curve={1: 0.2, 2: 0.3}),
    record(6, TrialState.RUNNING, curve={1: 0.99}),
    record(7, objective=0.8, curve={1: 0.8}),
    record(8, TrialState.PRUNED, curve={1: 0.1, 2: 0.4}),
)


def test_complete_trials_rank_first_then_those_pruned_latest() -> None:
    assert [ranked.number for ranked in rank(RECORDS)] == [3, 0, 7, 8, 5, 2, 6, 4, 1]


def test_a_continued_trial_shows_its_last_epoch() -> None:
    promoted = record(0, objective=0.8, curve={2: 0.7, 3: 0.8})
    further = record(1, TrialState.PRUNED, curve={3: 0.3})
    ranked = rank((promoted, record(2, TrialState.PRUNED, curve={1: 0.2, 2: 0.9}), further))

    assert [ranked.number for ranked in ranked] == [0, 1, 2]
    assert list(table(ranked)["epochs_run"]) == [3, 3, 2]


def test_the_order_of_the_records_does_not_matter() -> None:
    assert rank(reversed(RECORDS)) == rank(RECORDS)


def test_the_table_has_rows_of_trials_columns_of_parameters() -> None:
    frame = table(rank(RECORDS))

    assert list(frame.columns) == [
        "rank",
        "trial",
        "state",
        "objective",
        "filters_1",
        "learning_rate",
        "epochs_run",
        "seconds",
        "run_id",
    ]
    assert list(frame["rank"]) == list(range(1, 10))
    assert list(frame["state"][[0, 3, 8]]) == ["complete", "pruned", "diverged"]
    first = frame.iloc[0]
    assert [first[name] for name in ("trial", "objective", "epochs_run", "seconds", "run_id")] == [
        3,
        0.9,
        1,
        1.2,
        "run-3",
    ]
    assert math.isnan(frame["objective"][3])


def test_a_study_without_trials_has_an_empty_table() -> None:
    assert rank(()) == ()
    assert table(()).empty
