import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENTRY_POINTS = sorted(path.stem for path in (ROOT / "experiments").glob("[a-z]*.py"))
LOCKS = ("requirements.lock", "requirements-dev.lock")


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def imported_by(*arguments: str) -> set[str]:
    done = run(sys.executable, "-X", "importtime", *arguments)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"^import time:.*\| +(\w+)$", done.stderr, re.MULTILINE))


def locked(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def test_imports_go_one_way() -> None:
    done = run(Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", ["config", "space", "trial", "errors"])
def test_the_words_everyone_shares_load_no_slow_library(module: str) -> None:
    imported = imported_by("-c", f"import fashion_study.{module}")
    assert imported & {"tensorflow", "keras", "mlflow", "optuna", "matplotlib", "sklearn", "pandas"} == set()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_waits_for_no_slow_library(name: str) -> None:
    imported = imported_by("-m", f"experiments.{name}", "--help")
    assert "typer" in imported
    assert imported & {"tensorflow", "keras", "mlflow", "optuna", "matplotlib", "sklearn", "pandas"} == set()


def test_a_study_on_this_machine_needs_no_ray() -> None:
    assert "ray" not in imported_by("-c", "import fashion_study.study.run, fashion_study.study.workers")


def test_every_entry_point_is_listed_with_a_line_from_any_directory(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "experiments", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    described = dict(re.findall(r"^python -m experiments\.(\w+) +(\S.+)$", done.stdout, re.MULTILINE))
    assert sorted(described) == ENTRY_POINTS


def test_an_entry_point_given_as_an_argument_is_refused() -> None:
    done = run(sys.executable, "-m", "experiments", "run_study")
    assert done.returncode == 2
    assert "python -m experiments.NAME" in done.stderr


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_hashes(name: str) -> None:
    requirements = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    assert requirements
    assert [line for line in requirements if not re.match(r"[\w.\[\]-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line)] == []


@pytest.mark.parametrize("name", LOCKS)
def test_locks_hold_no_address(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.findall(r"://|--\w*index|--find-links", text) == []


def test_tests_run_on_the_versions_that_a_study_runs_on() -> None:
    study, tests = (locked(name) for name in LOCKS)
    assert {name: tests.get(name) for name in study} == study
    assert "hatchling" in study


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 3.10", "is 3.10"),
        ("echo 3.14", "is 3.14"),
        ('case "$2" in *venv*) exit 1;; *) echo 3.12;; esac', "is 3.12 without venv"),
        ("exit 127", "found no"),
    ],
)
def test_make_refuses_a_python_that_does_not_fit_in_one_line(tmp_path: Path, script: str, found: str) -> None:
    for name in ("Makefile", "pyproject.toml", *LOCKS):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)

    done = run("make", "--no-print-directory", "study", f"PYTHON={python}", cwd=tmp_path)

    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "Python 3.11, 3.12 or 3.13 with its venv module is needed" in line
    assert found in line
    assert not (tmp_path / ".venv").exists()
