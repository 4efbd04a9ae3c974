"""The README's walk-through is true: every command in it is run, and answers what the README shows."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTION = "## Walk-through"
# Not a measure of anything: how long one command on a busy machine may take before something must be wrong.
PATIENCE = 280


@dataclass(frozen=True)
class Step:
    """A command of the walk-through and the lines that it is said to answer; `...` stands for any others."""

    command: str
    answer: tuple[str, ...]

    def __str__(self) -> str:
        return self.command


def steps() -> list[Step]:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(SECTION)[1].split("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", section, flags=re.DOTALL)
    found = []
    for part in re.split(r"^\$ ", "\n".join(blocks), flags=re.MULTILINE)[1:]:
        command, _, answer = part.partition("\n")
        found.append(Step(command, tuple(line for line in answer.splitlines() if line.strip())))
    return found


def plain(lines: Iterable[str]) -> str:
    """Write lines as one, without what may differ from machine to machine: figures, ids, and where a table wraps."""
    text = re.sub(r"(?<=\brun )[0-9a-f]{8}\b", "#", " ".join(lines))
    text = re.sub(r"[+-]?\d[\d.,e+-]*( (s|min)\b)?", "#", text)
    return re.sub(r"[\s─]+", " ", text).strip()


def parts(answer: Iterable[str]) -> list[str]:
    """Split what the README shows at each `...` line."""
    groups: list[list[str]] = [[]]
    for line in answer:
        if line.strip() == "...":
            groups.append([])
        else:
            groups[-1].append(line)
    return [plain(group) for group in groups if group]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the walk-through begins with nothing but the project's samples."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "docs").symlink_to(ROOT / "docs")
    return folder


def test_nothing_in_the_readme_waits_to_be_filled_in() -> None:
    assert "@@" not in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_walk_through_has_the_commands_of_the_whole_way() -> None:
    modules = {shlex.split(step.command)[2].removeprefix("experiments.") for step in steps()}
    assert modules >= {"reproduce_baseline", "run_study", "promote", "report", "predict"}


def test_the_report_speaks_of_the_best_trial_as_the_study_s_summary_does() -> None:
    shown = {shlex.split(step.command)[2]: " ".join(step.answer) for step in steps()}
    require_the_same_best(shown["experiments.run_study"], shown["experiments.report"])


def require_the_same_best(summary: str, report: str) -> None:
    (best,) = re.findall(r"(?<=Best: )trial \d+ with .* against the baseline trial \([\d.]+\)", summary)
    assert f"best {best}" in report


# One test for all of them, since each needs what those before it left.
@pytest.mark.timeout(900)
def test_every_command_answers_what_the_readme_shows(desk: Path) -> None:
    environment = os.environ | {"COLUMNS": "100", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    answers = {}
    for step in steps():
        words = shlex.split(step.command)
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=desk,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode in (0, 1), f"{step.command}:\n{done.stdout}{done.stderr}"
        answers[words[2]] = done.stdout
        shown = plain((done.stdout + done.stderr).splitlines())
        place = 0
        for part in parts(step.answer):
            assert part in shown[place:], f"{step.command} does not answer {part!r}:\n{done.stdout}{done.stderr}"
            place = shown.index(part, place) + len(part)
    require_the_same_best(answers["experiments.run_study"], answers["experiments.report"])
