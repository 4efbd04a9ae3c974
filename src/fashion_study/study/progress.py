"""What a person sees while a study runs: a live display on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from fashion_study.trial import EpochReport, TrialResult, TrialSpec, TrialState


class Observer:
    """What shows a study to a person; it changes nothing that the study does, and by default shows nothing."""

    def begin(self, title: str, counted: int, total: int, what: str = "trials") -> None:
        """Show what begins, a study's trials or its finalists' repeats: `counted` of `total` are done already."""

    def expect(self, total: int) -> None:
        """Show that `total` are to be done, not what was said when they began."""

    def note(self, text: str) -> None:
        """Show a line that matters."""

    def warn(self, text: str) -> None:
        """Show a warning on standard error."""

    def trial_started(self, spec: TrialSpec) -> None:
        """Show an attempt that a worker has taken up."""

    def epoch_done(self, spec: TrialSpec, report: EpochReport) -> None:
        """Show the values after an epoch."""

    def trial_closed(self, spec: TrialSpec, result: TrialResult, best: tuple[int, float] | None) -> None:
        """Show how a trial ended, and the best so far: its number and its objective."""

    def trial_lost(self, spec: TrialSpec, cause: str, state: TrialState) -> None:
        """Show that an attempt was stopped from outside: its trial waits again, or is given up as failed."""


class PlainLines(Observer):
    """An observer that prints a line for each event, as a log should keep it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._counted = self._total = 0

    def begin(self, title: str, counted: int, total: int, what: str = "trials") -> None:
        """Print what begins."""
        self._counted, self._total = counted, total
        self.note(title)
        self.note(f"{counted} of {total} {what} done")

    def expect(self, total: int) -> None:
        """Count towards another total from now on."""
        self._total = total

    def note(self, text: str) -> None:
        """Print a line that matters."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def warn(self, text: str) -> None:
        """Print a line on standard error."""
        Console(stderr=True).print(f"Warning: {text}", highlight=False, soft_wrap=True, markup=False)

    def trial_started(self, spec: TrialSpec) -> None:
        """Print what is tried."""
        again = f" (attempt {spec.attempt})" if spec.attempt > 1 and not spec.repeat else ""
        begun = f"goes on after epoch {spec.resumes}" if spec.resumes else "started"
        self.note(f"{spec.label} {begun}{again}: {describe(spec)}")

    def epoch_done(self, spec: TrialSpec, report: EpochReport) -> None:
        """Print the values after an epoch."""
        self.note(
            f"{spec.label} epoch {report.epoch} of {spec.hyperparameters.epochs}: "
            f"val_accuracy {report.val_accuracy:.4f}, {report.images_per_second:,.0f} images/s"
        )

    def trial_closed(self, spec: TrialSpec, result: TrialResult, best: tuple[int, float] | None) -> None:
        """Print how a trial ended or that it is paused, and the best so far."""
        self._counted += result.state.is_counted and not spec.was_paused
        so_far = f"; best {best[1]:.4f} (trial {best[0]:03d})" if best else ""
        self.note(f"{spec.label} {outcome(result)}; {self._counted} of {self._total} done{so_far}")

    def trial_lost(self, spec: TrialSpec, cause: str, state: TrialState) -> None:
        """Print that an attempt was stopped from outside."""
        consequence = "it goes back to waiting"
        self._counted += (state is TrialState.FAILED) - spec.was_paused
        if state is TrialState.FAILED:
            consequence = f"it is given up after attempt {spec.attempt}; {self._counted} of {self._total} done"
        self.note(f"{spec.label} stopped from outside ({cause}); {consequence}")


class LiveDisplay(PlainLines):
    """An observer that draws a bar for the study and one for each running trial, and finished trials as lines above."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.bars = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=9)),
            BarColumn(bar_width=12),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
            # On a short line only the details are cut.
            TextColumn("{task.fields[detail]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            # On a narrow terminal the validation accuracy needs its place.
            *([_TimeLeft(table_column=Column(no_wrap=True, min_width=11))] if console.width > 70 else []),
            console=console,
            expand=True,
            refresh_per_second=4,
            # On a terminal, warnings appear above the bars; elsewhere they go where the user has sent them.
            redirect_stderr=sys.stderr.isatty(),
        )
        self._study_bar = self.bars.add_task("", total=None, visible=False)
        self._trial_bars: dict[tuple[int, int], TaskID] = {}

    def begin(self, title: str, counted: int, total: int, what: str = "trials") -> None:
        """Draw the study's bar, in the place of an earlier one."""
        self._counted, self._total = counted, total
        self.note(title)
        self.bars.remove_task(self._study_bar)
        self._study_bar = self.bars.add_task(what, total=total, completed=counted, detail="", resumed_at=counted)

    def expect(self, total: int) -> None:
        """Change the length of the study's bar."""
        super().expect(total)
        self.bars.update(self._study_bar, total=total)

    def trial_started(self, spec: TrialSpec) -> None:
        """Draw a bar for the attempt."""
        trained = max(spec.inherited, spec.resumes)
        self._trial_bars[spec.key] = self.bars.add_task(
            spec.label,
            total=spec.hyperparameters.epochs,
            completed=trained,
            detail=describe(spec),
            resumed_at=trained,
        )

    def epoch_done(self, spec: TrialSpec, report: EpochReport) -> None:
        """Move the attempt's bar."""
        detail = f"val_accuracy {report.val_accuracy:.4f}  {report.images_per_second:,.0f} images/s"
        # Drawn at once: a short trial would end before the next regular refresh, and its curve would never be seen.
        self.bars.update(self._trial_bars[spec.key], completed=report.epoch, detail=detail, refresh=True)

    def trial_closed(self, spec: TrialSpec, result: TrialResult, best: tuple[int, float] | None) -> None:
        """Turn the attempt's bar into a line, and move the study's bar."""
        super().trial_closed(spec, result, best)
        self.bars.remove_task(self._trial_bars.pop(spec.key))
        nothing = "" if spec.repeat else "none complete yet"
        detail = f"best {best[1]:.4f} (trial {best[0]:03d})" if best else nothing
        self.bars.update(self._study_bar, completed=self._counted, detail=detail)

    def trial_lost(self, spec: TrialSpec, cause: str, state: TrialState) -> None:
        """Remove the attempt's bar."""
        super().trial_lost(spec, cause, state)
        self.bars.remove_task(self._trial_bars.pop(spec.key))
        self.bars.update(self._study_bar, completed=self._counted)


@contextmanager
def watch(console: Console) -> Iterator[Observer]:
    """Show a study while the block runs: live on a terminal, as plain lines elsewhere."""
    if not console.is_terminal:
        yield PlainLines(console)
        return
    display = LiveDisplay(console)
    with display.bars:
        yield display


class _TimeLeft(ProgressColumn):
    """The time that the rest takes at the pace so far; a resumed study begins above zero."""

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["resumed_at"]
        if done <= 0:
            return Text()
        return Text(f"{duration((task.elapsed or 0.0) / done * (task.remaining or 0.0))} left")


def describe(spec: TrialSpec) -> str:
    """Describe a trial's hyperparameters in one line."""
    params = spec.hyperparameters
    filters = f"{params.filters_1}-{params.filters_2}-{params.filters_3}"
    rate = f"learning rate {params.learning_rate:.2g}"
    if params.schedule == "inverse_time":
        rate += f", decay {params.decay:.2g}"
    return f"filters {filters}, {rate}, batch {params.batch_size}, {params.epochs} epochs"


def outcome(result: TrialResult) -> str:
    """Describe in a few words how a trial ended."""
    match result.state:
        case TrialState.COMPLETE:
            return f"complete: {result.objective:.4f}"
        case TrialState.PRUNED | TrialState.PAUSED:
            return f"{result.state} at epoch {result.epochs_run}"
        case _:
            return f"failed: {result.reason}" + (f": {result.cause}" if result.cause else "")


def duration(seconds: float) -> str:
    """Return a duration as `45 s`, `12 min` or `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
