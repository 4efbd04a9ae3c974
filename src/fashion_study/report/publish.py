"""A study's report, written to a file and to the study's run."""

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_study.errors import BadInputError
from fashion_study.paths import expanded
from fashion_study.store.failures import store_failures
from fashion_study.store.reading import reading
from fashion_study.store.store import Store, find_store
from fashion_study.text import printable, shown

if TYPE_CHECKING:
    from fashion_study.report.facts import StudyFacts

ARTIFACT = "report.html"


@dataclass(frozen=True)
class Report:
    """The path of a report, whether it is on the study's run too, and its contents in a line."""

    path: Path
    is_logged: bool
    contents: str


def publish_report(study: str, store: Path | str, output: Path | None = None, data_dir: Path | None = None) -> Report:
    """Write the report of `study` to `output`, by default `STUDY.html` in the working directory.

    It is logged as `report.html` on the study's run as well, unless the study is still running or its store is
    read-only: then nothing but the file is written. `data_dir` is the folder of the data set's files, from which the
    examples come.

    Raises:
        BadInputError: there is no such study, or the file cannot be written there.
        StoreError: the store holds no study, or cannot be read.
    """
    output = None if output is None else expanded(output)
    if output is not None:
        _require_place(output)
    found = find_store(store, needs="trials")
    with ExitStack() as stack:
        with store_failures(found, "Call for the report again when it answers."):
            opened = stack.enter_context(reading(found))
            path, facts = _collect(study, opened, output, data_dir)
        # Imported here: it brings Matplotlib, and a refusal must not wait for that.
        from fashion_study.report.page import render

        page = render(facts, Path(store))
        try:
            path.write_text(page, encoding="utf-8")
        except OSError as error:
            raise _unwritable(path, str(error.strerror)) from error
        is_logged = not facts.is_running and (found.is_writable or not found.is_embedded)
        if is_logged:
            with store_failures(found, f"The report lies at {path}; call for it again to have it on the study's run."):
                opened.client().log_text(facts.run_id, page, ARTIFACT)
    return Report(path, is_logged, _contents(facts))


def _collect(study: str, store: Store, output: Path | None, data_dir: Path | None) -> "tuple[Path, StudyFacts]":
    """Return where the report goes, and what it says."""
    with store.optuna_storage() as storage:
        from fashion_study.store.studies import open_study

        trial_storage = open_study(store, storage, study)
        if "run_id" not in trial_storage.attrs:
            raise BadInputError(
                f"Study {study!r} ended before its first trial was begun. Expected at least one trial. "
                "Start it again with the command that began it."
            )
        path = output or _default_place(study)
        # Imported here: it brings MLflow, and a refusal must not wait for it.
        from fashion_study.report.collect import collect

        return path, collect(trial_storage, store, data_dir)


def _require_place(output: Path) -> None:
    try:
        if output.is_dir():
            raise _unwritable(output, "it is a folder")
        if not output.parent.is_dir():
            raise _unwritable(output, f"there is no folder {printable(str(output.parent))}")
    except OSError as error:
        raise _unwritable(output, str(error.strerror)) from error


def _unwritable(path: Path, reason: str) -> BadInputError:
    return BadInputError(
        f"The report cannot be written to {printable(str(path))}: {reason}. "
        "Expected a file in a folder that is there and may be written. Name another one with --output."
    )


def _default_place(study: str) -> Path:
    """Name the file after the study; a store made by others may have a study whose name is a path."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", study):
        raise BadInputError(
            f"Study {shown(study)} has a name that is no file's. Expected up to 200 letters, "
            "digits, '.', '_' and '-'. Say with --output where its report goes."
        )
    return Path(f"{study}.html")


def _contents(facts: "StudyFacts") -> str:
    """Sum up a report in a line."""
    state = "still running, " if facts.is_running else ""
    line = f"{facts.name}: {state}{facts.counted} of {facts.trials} trials done"
    first = facts.highest
    if first is None or first.objective is None:
        return f"{line}, none complete yet"
    # As in the summary of a study; the finalists are there for another figure.
    line += f", best {first.label} with {first.objective:.4f} validation accuracy"
    baseline = facts.record(facts.baseline.trial) if facts.baseline else None
    if baseline is not None and baseline.objective is not None and baseline is not first:
        points = 100 * (first.objective - baseline.objective)
        line += f", {points:+.2f} points against the baseline trial ({baseline.objective:.4f})"
    if facts.best is not None and facts.best.repeat is not None:
        model = f"trial {facts.best.trial:03d}, repeat {facts.best.repeat}"
        line += f"; the best model is {model}, with {facts.best.accuracy:.4f}"
    return line
