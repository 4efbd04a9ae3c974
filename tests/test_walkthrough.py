"""The commands of the README and of the tutorial: every one is run, and prints what the tutorial shows."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import call_command
from tests.support.finished import REPRODUCE, copy_store
from tests.support.processes import started_process

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"


@dataclass(frozen=True)
class Step:
    """A command of a page and the lines that it is said to print; `...` stands for any others."""

    command: str
    answer: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.command)

    @property
    def module(self) -> str:
        return self.arguments[2].removeprefix("experiments.")

    def __str__(self) -> str:
        return self.command


def steps(page: Path) -> list[Step]:
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = []
    for part in re.split(r"^\$ ", "\n".join(blocks), flags=re.MULTILINE)[1:]:
        command, _, answer = part.partition("\n")
        if command.startswith("python -m "):
            found.append(Step(command, tuple(line for line in answer.splitlines() if line.strip())))
    return found


def plain(lines: Iterable[str]) -> str:
    """Join lines without what may differ from machine to machine: figures, ids, and where a table wraps."""
    text = re.sub(r"(?<=\brun )[0-9a-f]{8}\b", "#", " ".join(lines))
    text = re.sub(r"[+-]?\d[\d.,e+-]*( (s|min)\b)?", "#", text)
    return re.sub(r"[\s─]+", " ", text).strip()


def parts(answer: Iterable[str]) -> list[str]:
    """Split what a page shows at each `...` line."""
    groups: list[list[str]] = [[]]
    for line in answer:
        if line.strip() == "...":
            groups.append([])
        else:
            groups[-1].append(line)
    return [plain(group) for group in groups if group]


def run(step: Step, folder: Path) -> subprocess.CompletedProcess[str]:
    with chdir(folder):
        done = call_command(*step.arguments[2:])
    assert done.returncode in (0, 1), f"{step}:\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with nothing but the project's samples, in which the tutorial begins."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "docs").symlink_to(ROOT / "docs")
    return folder


@pytest.fixture(scope="module")
def answers(desk: Path, reproduction: Path) -> dict[Step, subprocess.CompletedProcess[str]]:
    """Run the tutorial, each command after those that it needs; the first one has been run in a process of its own."""
    first, *others = steps(TUTORIAL)
    assert first.command == REPRODUCE
    copy_store(reproduction / "demo", desk / "demo")
    printed = (reproduction / "printed").read_text(encoding="utf-8")
    done = subprocess.CompletedProcess(first.arguments, 0, printed, "")
    return {first: done} | {step: run(step, desk) for step in others}


def test_nothing_waits_to_be_filled_in() -> None:
    assert [page for page in (README, TUTORIAL) if "@@" in page.read_text(encoding="utf-8")] == []


def test_the_tutorial_goes_the_whole_way() -> None:
    modules = {step.module for step in steps(TUTORIAL)}
    assert modules >= {"reproduce_baseline", "run_study", "promote", "report", "predict"}


def test_the_shown_report_names_the_shown_best_trial() -> None:
    shown = {step.module: " ".join(step.answer) for step in steps(TUTORIAL)}
    require_the_same_best(shown["run_study"], shown["report"])


def require_the_same_best(summary: str, report: str) -> None:
    (best,) = re.findall(r"(?<=Best: )trial \d+ with .* against the baseline trial \([\d.]+\)", summary)
    assert f"best {best}" in report


@pytest.mark.timeout(900)
def test_every_command_prints_what_the_tutorial_shows(answers: dict[Step, subprocess.CompletedProcess[str]]) -> None:
    for step, done in answers.items():
        printed = plain((done.stdout + done.stderr).splitlines())
        start = 0
        for part in parts(step.answer):
            assert part in printed[start:], f"{step} does not print {part!r}:\n{done.stdout}{done.stderr}"
            start = printed.index(part, start) + len(part)
    printed_by = {step.module: done.stdout for step, done in answers.items()}
    require_the_same_best(printed_by["run_study"], printed_by["report"])


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("answers")
def test_every_command_of_the_readme_runs(desk: Path) -> None:
    # They go on with the tutorial's store, so that its study does not have to be trained again.
    (desk / "mlruns").symlink_to("demo")
    for step in steps(README):
        if step.module == "ui":
            open_and_close(step, desk)
        else:
            run(step, desk)


def open_and_close(step: Step, folder: Path) -> None:
    """Start the MLflow UI, wait for its address, end it with Ctrl-C."""
    command = [sys.executable, *step.arguments[1:], "--port", "5051"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with started_process(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as ui:
        assert ui.stdout is not None
        printed = ""
        for line in ui.stdout:
            printed += line
            if "Ctrl-C" in line:
                ui.send_signal(signal.SIGINT)
    assert "http://127.0.0.1:" in printed
    assert ui.returncode == 130
