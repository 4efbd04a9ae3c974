"""The promises of a study's summary: who won, against what, and what to type next."""

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM
from typing import Any

import pytest
from rich.console import Console

from fashion_study.config import StudyConfig
from fashion_study.store.store import Store
from fashion_study.store.trials import TrialRecord
from fashion_study.study.finalists import Finalist
from fashion_study.study.leaderboard import rank
from fashion_study.study.run import StudyResult
from fashion_study.study.summary import SHOWN, summarise
from fashion_study.trial import DataSource, FailReason, Precision, TrialState

ROOT = Path("/somewhere/my store")
EMBEDDED = Store(ROOT, f"sqlite:///{ROOT}/mlflow.db")
PARAMS: dict[str, int | float | str] = {"filters_1": 8, "filters_2": 64, "learning_rate": 0.00123456, "epochs": 3}


def trial(number: int, state: TrialState = TrialState.COMPLETE, **fields: Any) -> TrialRecord:
    usual: dict[str, Any] = {
        "params": PARAMS,
        "attempt": 1,
        "run_id": f"run-{number}",
        "objective": None,
        "seconds": 12.4,
    }
    return TrialRecord(number, state, **(usual | fields))


def complete(number: int, objective: float) -> TrialRecord:
    return trial(number, objective=objective, curve={1: 0.1, 2: 0.2, 3: objective})


def result(*records: TrialRecord, config: StudyConfig | None = None, **fields: Any) -> StudyResult:
    config = config or StudyConfig(space="smoke", trials=max(1, len(records)))
    usual: dict[str, Any] = {
        "name": "digits-smoke",
        "source": DataSource("digits", None, "d" * 64),
        "store": EMBEDDED,
        "run_id": "study-run",
        "experiment_id": "7",
        "precision": Precision.FLOAT32,
        "config": config,
        "total": config.trials,
        "began_with": 0,
        "seconds": 100.0,
    }
    return StudyResult(records=rank(records), **(usual | fields))


def test_a_challenger_of_an_earlier_run_is_not_claimed_to_be_one_now() -> None:
    registered = result(complete(0, 0.5), version=("digits-cnn", 1), is_challenger=False)
    assert "Registered: digits-cnn version 1 was the challenger when the study ended" in shown(registered)


def shown(of: StudyResult, width: int = 80) -> str:
    out = StringIO()
    summarise(of, Console(file=out, width=width))
    return out.getvalue()


def rows(text: str) -> list[list[str]]:
    """Read the ranking back: the words of each of its rows."""
    words = [line.split() for line in text.splitlines()]
    return [row for row in words if len(row) > 1 and row[0].isdigit() and row[1].isdigit()]


def test_the_ranking_shows_each_trial_with_what_it_reached() -> None:
    text = shown(
        result(
            complete(0, 0.5),
            trial(1, TrialState.PRUNED, curve={1: 0.25}),
            # It went on from another trial's model.
            trial(2, objective=0.75, curve={2: 0.7, 3: 0.75}),
            trial(3, TrialState.FAILED, reason=FailReason.DIVERGED, seconds=None),
        )
    )

    assert "digits-smoke on digits" in text
    assert rows(text) == [
        ["1", "002", "0.7500", "complete", "8-64", "0.00123", "3", "of", "3", "12", "s"],
        ["2", "000", "0.5000", "complete", "8-64", "0.00123", "3", "of", "3", "12", "s"],
        ["3", "001", "0.2500", "pruned", "8-64", "0.00123", "1", "of", "3", "12", "s"],
        ["4", "003", "diverged", "8-64", "0.00123", "0", "of", "3"],
    ]


MANY: dict[str, int | float | str] = {
    "filters_1": 32,
    "filters_2": 64,
    "filters_3": 96,
    "learning_rate": 0.000123456,
    "batch_size": 1024,
    "augmentation": "flip-shift",
    "dropout": 0.25,
    "epochs": 20,
}


COMMON = ["8-64", "0.00123", "3", "of", "3"]


@pytest.mark.parametrize("width", [100, 80, 60, 40])
def test_a_narrow_terminal_cuts_no_number(width: int) -> None:
    finalist = Finalist(123, {}, tuple(0.70001 + 0.01 * n for n in range(5)), ("run",) * 5)
    best = trial(123, objective=0.75, curve={19: 0.7, 20: 0.75}, params=MANY, seconds=7100)
    failed = trial(7, TrialState.FAILED, reason=FailReason.INTERRUPTED, params=MANY)

    text = shown(result(best, failed, finalists=(finalist,)), width).partition("lower bound")[0]

    numbers = ["123", "007", "0.7500", "32-64-96", "0.000123", "1024", "flip-shift", "0.25", "20 of 20"]
    for number in (*numbers, "0.7000", "0.7400", "0.7200"):
        assert number in text, text
    assert not re.search(r"\d…", text), text
    assert all(len(line) <= width for line in text.splitlines())


def test_time_state_and_headings_give_way_first() -> None:
    trials = result(complete(0, 0.5), complete(1, 0.75))
    wide, narrow, narrowest = (shown(trials, width).partition("Best: ")[0] for width in (80, 60, 40))

    assert rows(wide)[0] == rows(narrow)[0] == ["1", "001", "0.7500", "complete", *COMMON, "12", "s"]
    assert rows(narrowest)[0] == ["1", "001", "0.7500", *COMMON[:2]]
    assert "3 of 3" in narrowest
    assert "learning" in wide
    assert "learning" not in narrow


def test_a_trial_that_was_never_begun_is_shown_too() -> None:
    text = shown(result(complete(0, 0.5), trial(1, TrialState.WAITING, params={}, run_id=None, seconds=None)))

    assert "001" in text
    assert "waiting" in text


def test_what_trials_failed_of_is_said_once_with_the_log() -> None:
    full = {"reason": FailReason.ERROR, "cause": "OSError: no room"}
    failed = (trial(number, TrialState.FAILED, **full) for number in (3, 1))
    lost = trial(2, TrialState.FAILED, reason=FailReason.INTERRUPTED)

    text = shown(result(complete(0, 0.5), *failed, lost))

    assert "Failed (001, 003): error: OSError: no room\nFailed (002): interrupted\n" in text
    assert f"failure.txt on a trial's run; what the workers printed is in {ROOT}/logs/digits-smoke." in text
    assert "failure.txt" not in shown(result(complete(0, 0.5)))


def test_a_long_ranking_is_cut_and_says_so() -> None:
    text = shown(result(*(complete(number, 0.5) for number in range(SHOWN + 3))))

    assert "and 3 more in the MLflow UI" in text
    assert [row[1] for row in rows(text)] == [f"{number:03d}" for number in range(SHOWN)]


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ((), "No trial is complete"),
        ((trial(0, TrialState.FAILED, reason=FailReason.ERROR),), "No trial is complete"),
        ((complete(0, 0.5),), "The baseline trial itself is the best so far, with 0.5000."),
        (
            (trial(0, TrialState.WAITING), complete(1, 0.75)),
            "trial 001 with 0.7500; the baseline trial is not complete.",
        ),
        (
            (complete(0, 0.5), complete(1, 0.7512)),
            "trial 001 with 0.7512 validation accuracy, +25.12 points against the baseline trial (0.5000).",
        ),
    ],
    ids=["empty", "failed", "baseline", "without baseline", "better"],
)
def test_the_best_is_compared_with_the_baseline(records: tuple[TrialRecord, ...], line: str) -> None:
    assert line in shown(result(*records))


TWO = (complete(0, 0.5), complete(1, 0.75))
FOUR_ASKED = StudyConfig(space="smoke", trials=4)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: result(*TWO, began_with=1), "2 of 2 trials done, 1 of them now, in 2 min."),
        (lambda: result(*TWO, began_with=2), "Nothing left to do: 2 of 2 trials were done already."),
        (lambda: result(*TWO, config=FOUR_ASKED, began_with=2), "2 of 4 trials done, 0 of them now"),
        (
            lambda: result(*TWO, config=FOUR_ASKED),
            "The time of --budget or --timeout is over, or",
        ),
        (
            lambda: result(*TWO, config=FOUR_ASKED, exhausted="no point is left"),
            "The study ends here: no point is left.",
        ),
        (lambda: result(*TWO, config=FOUR_ASKED, stopped_by=SIGINT), "Stopped by Ctrl-C; the unfinished trials wait."),
        (
            lambda: result(*TWO, config=FOUR_ASKED, stopped_by=SIGTERM),
            "Stopped by SIGTERM; the unfinished trials wait.",
        ),
        (
            lambda: result(*TWO, config=FOUR_ASKED, stopped_by=SIGHUP),
            "Stopped by SIGHUP, a closed terminal; the unfinished trials wait.",
        ),
    ],
    ids=["done", "nothing left", "not done", "late", "exhausted", "Ctrl-C", "SIGTERM", "SIGHUP"],
)
def test_how_the_study_ended_is_said(make: Callable[[], StudyResult], line: str) -> None:
    assert line in shown(make())


def test_the_next_command_continues_the_study_or_asks_for_more() -> None:
    assert "python -m experiments.run_study --space smoke --trials 4\n" in shown(result(*TWO, config=FOUR_ASKED))
    assert "python -m experiments.run_study --space smoke --trials 22\n" in shown(result(*TWO))


def test_the_next_command_names_the_images_if_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = StudyConfig(space="smoke", trials=1, data_dir=Path("images"))

    assert "--data-dir images" in shown(result(complete(0, 0.5), config=config))
    monkeypatch.setenv("FASHION_MNIST_DIR", "images")
    assert "--data-dir" not in shown(result(complete(0, 0.5), config=config))


def test_an_exhausted_study_offers_no_more_trials() -> None:
    assert "experiments.run_study" not in shown(result(*TWO, config=FOUR_ASKED, exhausted="no point is left"))


def test_the_mlflow_ui_is_started_on_an_embedded_store() -> None:
    text = shown(result(*TWO))

    assert "-m experiments.ui --study " in text


def test_the_mlflow_ui_of_a_server_is_already_there() -> None:
    text = shown(result(*TWO, store=Store(ROOT, "http://tracking:5000")))

    assert "http://tracking:5000/#/experiments/7" in text
    assert "experiments.ui" not in text


def test_every_next_command_names_the_trial_storage() -> None:
    config = StudyConfig(space="smoke", trials=2, study_db="postgresql://ana@host/optuna")

    lines = shown(result(*TWO, config=config)).splitlines()

    (report,) = (line for line in lines if "experiments.report" in line)
    assert "OPTUNA_STORAGE=postgresql://ana@host/optuna " in report
    (more,) = (line for line in lines if "experiments.run_study" in line)
    assert "--study-db postgresql://ana@host/optuna" in more


def test_how_busy_the_workers_were_is_shown_where_they_trained() -> None:
    assert "Workers: busy 95.0 % of the time." in shown(result(complete(0, 0.5), busy_share=0.95))
    assert "Workers:" not in shown(result(complete(0, 0.5)))


def test_results_on_other_data_than_was_wished_for_say_so() -> None:
    fallback = DataSource("digits", None, "d" * 64, is_fallback=True)

    assert "FALLBACK, not Fashion-MNIST" in shown(result(*TWO, source=fallback))
    assert "FALLBACK" not in shown(result(*TWO))
