"""What a person sees while a study runs."""

from io import StringIO

import pytest
from rich.console import Console
from rich.progress import Task, TaskID

from fashion_study.study.progress import (
    LiveDisplay,
    Observer,
    PlainLines,
    _TimeLeft,
    describe,
    duration,
    watch,
)
from fashion_study.testing.training import toy_report, toy_result
from fashion_study.trial import EpochReport, FailReason, Hyperparameters, Precision, TrialResult, TrialSpec, TrialState


def spec(number: int, attempt: int = 1) -> TrialSpec:
    params = Hyperparameters(learning_rate=0.00123, epochs=4)
    return TrialSpec(number, attempt, params, 0, f"run-{number}", Precision.FLOAT32)


def completed(number: int, objective: float) -> TrialResult:
    return TrialResult(number, 1, TrialState.COMPLETE, 4, objective)


def report(of: TrialSpec, epoch: int, accuracy: float) -> EpochReport:
    return EpochReport(epoch, 0.5, accuracy, 0.5, accuracy, 1.0, 12345.6, *of.key)


def act(observer: Observer) -> None:
    """Show a study of five trials, one of them done, with every kind of event."""
    observer.begin("study toy [1/2]", 1, 5)
    observer.note("precision [bold]float32[/bold]")
    for number in (1, 2, 3, 4):
        observer.trial_started(spec(number))
    observer.epoch_done(spec(1), report(spec(1), 1, 0.5))
    observer.trial_closed(spec(1), completed(1, 0.875), (1, 0.875))
    observer.trial_closed(spec(2), toy_result(spec(2), TrialState.PRUNED, 3), (1, 0.875))
    observer.trial_closed(spec(3), toy_result(spec(3), TrialState.FAILED, 1, FailReason.DIVERGED), (1, 0.875))
    observer.trial_lost(spec(4), "signal SIGKILL", TrialState.WAITING)
    observer.trial_started(spec(4, attempt=2))
    observer.trial_lost(spec(4, attempt=2), "exit code 1", TrialState.FAILED)


LINES = """\
trial 001 complete: 0.8750; 2 of 5 done; best 0.8750 (trial 001)
trial 002 pruned at epoch 3; 3 of 5 done; best 0.8750 (trial 001)
trial 003 failed: diverged: toy; 4 of 5 done; best 0.8750 (trial 001)
trial 004 stopped from outside (signal SIGKILL); it goes back to waiting
trial 004 stopped from outside (exit code 1); it is given up after attempt 2; 5 of 5 done
""".splitlines()


def test_without_a_terminal_every_event_is_a_plain_line() -> None:
    out = StringIO()

    act(PlainLines(Console(file=out, width=40)))

    tried = "filters 32-64-64, learning rate 0.0012, decay 1e-06, batch 512, 4 epochs"
    assert out.getvalue().splitlines() == [
        "study toy [1/2]",
        "1 of 5 trials done",
        "precision [bold]float32[/bold]",
        *(f"trial {number:03d} started: {tried}" for number in (1, 2, 3, 4)),
        "trial 001 epoch 1 of 4: val_accuracy 0.5000, 12,346 images/s",
        *LINES[:4],
        f"trial 004 started (attempt 2): {tried}",
        LINES[4],
    ]


def test_the_line_of_a_failed_trial_says_what_it_failed_of() -> None:
    out = StringIO()
    failed = TrialResult(3, 1, TrialState.FAILED, 1, reason=FailReason.ERROR, message="Trace\nback: \x1b[31mboom.\n")

    PlainLines(Console(file=out)).trial_closed(spec(3), failed, None)

    assert out.getvalue() == "trial 003 failed: error: Trace back: \\x1b[31mboom; 1 of 0 done\n"


def test_before_a_trial_is_complete_no_best_is_shown() -> None:
    out = StringIO()

    PlainLines(Console(file=out)).trial_closed(spec(2), toy_result(spec(2), TrialState.PRUNED, 3), None)

    assert "best" not in out.getvalue()


def live() -> tuple[LiveDisplay, StringIO]:
    out = StringIO()
    return LiveDisplay(Console(file=out, force_terminal=True, width=150)), out


def bars(display: LiveDisplay) -> str:
    """Render the bars as they stand, as text."""
    out = StringIO()
    Console(file=out, width=150).print(display.bars.get_renderable())
    return out.getvalue()


def test_a_terminal_shows_a_bar_for_the_study_and_each_trial() -> None:
    display, _ = live()
    with display.bars:
        display.begin("study toy", 1, 5)
        display.trial_started(spec(1))
        display.trial_started(spec(2))
        display.epoch_done(spec(1), report(spec(1), 3, 0.75))

        study, first, second = bars(display).splitlines()
        assert "trials" in study
        assert "1/5" in study
        assert "trial 001" in first
        assert "3/4" in first
        assert "val_accuracy 0.7500" in first
        assert "12,346 images/s" in first
        assert "trial 002" in second
        assert "0/4" in second
        assert describe(spec(2)) in second

        display.trial_closed(spec(1), completed(1, 0.875), (1, 0.875))

        study, second = bars(display).splitlines()
        assert "2/5" in study
        assert "best 0.8750 (trial 001)" in study
        assert "trial 002" in second


def test_a_lost_trial_has_no_bar_and_one_given_up_counts() -> None:
    display, _ = live()
    with display.bars:
        display.begin("study toy", 0, 5)
        display.trial_started(spec(1))
        display.trial_lost(spec(1), "signal SIGKILL", TrialState.WAITING)
        (study,) = bars(display).splitlines()
        assert "0/5" in study

        display.trial_started(spec(1, attempt=3))
        display.trial_lost(spec(1, attempt=3), "signal SIGKILL", TrialState.FAILED)
        (study,) = bars(display).splitlines()
        assert "1/5" in study


def test_time_left_is_shown_once_there_is_a_pace() -> None:
    display, _ = live()
    with display.bars:
        display.begin("study toy", 3, 9)
        assert "left" not in bars(display)

        display.trial_started(spec(3))
        display.trial_closed(spec(3), completed(3, 0.5), (3, 0.5))

        assert "left" in bars(display)


def test_time_left_counts_only_what_was_done_since_the_start() -> None:
    column = _TimeLeft()
    task = Task(TaskID(0), "trials", total=10, completed=8, _get_time=lambda: 60.0, fields={"resumed_at": 6})
    task.start_time = 0.0
    # Two of them took 60 seconds, and two are left.
    assert column.render(task).plain == "60 s left"
    task.fields["resumed_at"] = 8
    assert column.render(task).plain == ""


def test_a_terminal_keeps_how_trials_ended_as_lines() -> None:
    display, out = live()

    with display.bars:
        act(display)

    for line in ("study toy [1/2]", "precision [bold]float32[/bold]", *LINES):
        assert line in out.getvalue()


@pytest.mark.parametrize(("is_terminal", "kind"), [(True, LiveDisplay), (False, PlainLines)])
def test_the_console_decides_which_observer_is_used(is_terminal: bool, kind: type[PlainLines]) -> None:
    with watch(Console(file=StringIO(), force_terminal=is_terminal)) as observer:
        assert type(observer) is kind


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_warning_goes_to_standard_error(is_terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    out = StringIO()
    with watch(Console(file=out, force_terminal=is_terminal)) as observer:
        observer.warn("the server [b] does not answer")

    assert capsys.readouterr().err == "Warning: the server [b] does not answer\n"
    assert "does not answer" not in out.getvalue()


def test_a_library_shows_nothing_unless_it_is_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    act(Observer())
    Observer().epoch_done(spec(1), toy_report(spec(1), 1))

    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45.4, "45 s"),
        (89, "89 s"),
        (90, "2 min"),
        (720, "12 min"),
        (5400, "1 h 30 min"),
        (11_100, "3 h 05 min"),
    ],
)
def test_a_duration_is_written_for_a_person(seconds: float, text: str) -> None:
    assert duration(seconds) == text
