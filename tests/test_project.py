"""The project as a whole: its commands, imports, locks, and whether its documents are true to it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fashion_study

ROOT = Path(__file__).parents[1]
ENTRY_POINTS = sorted(path.stem for path in (ROOT / "experiments").glob("[a-z]*.py"))
LOCKS = ("requirements.lock", "requirements-dev.lock")
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = sorted(path for path in ROOT.rglob("*.md") if not path.relative_to(ROOT).parts[0].startswith((".", "build")))


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


@pytest.mark.parametrize("module", ["config", "space.file", "trial", "errors"])
def test_shared_modules_load_no_slow_library(module: str) -> None:
    imported = imported_by("-c", f"import fashion_study.{module}")
    assert imported & {"tensorflow", "keras", "mlflow", "optuna", "matplotlib", "sklearn", "pandas"} == set()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_waits_for_no_slow_library(name: str) -> None:
    imported = imported_by("-m", f"experiments.{name}", "--help")
    assert "typer" in imported
    assert imported & {"tensorflow", "keras", "mlflow", "optuna", "matplotlib", "sklearn", "pandas"} == set()


def test_a_study_on_this_machine_needs_no_ray() -> None:
    assert "ray" not in imported_by("-c", "import fashion_study.study.run")


def test_entry_points_are_listed_from_any_directory(tmp_path: Path) -> None:
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
def test_make_refuses_an_unsupported_python_in_one_line(tmp_path: Path, script: str, found: str) -> None:
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


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (len(text.splitlines()) <= 180, len(text.split()) <= 1_500) == (True, True)


def targets_of(headings: str) -> set[str]:
    """List the anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", headings, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page if not file else page.parent / file
        if not target.exists() or (anchor and anchor not in targets_of(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in DOCS} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in index} == set()


def test_the_shown_search_space_is_smoke() -> None:
    page = (ROOT / "docs" / "spaces.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert shown == (ROOT / "search_spaces" / "smoke.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "docs/notebook.md", "docs/keras-tuner.md"])
def test_every_name_that_a_page_imports_is_public(page: str) -> None:
    lines = re.findall(r"^from fashion_study import (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    names = {name for line in lines for name in line.split(", ")}
    assert names
    assert {name for name in names if not callable(getattr(fashion_study, name, None))} == set()


def test_public_names_are_imported_only_when_used() -> None:
    assert sorted(fashion_study.MODULES) == fashion_study.__all__
    assert imported_by("-c", "import fashion_study") & {"pydantic", "numpy", "mlflow", "optuna"} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    files = {file for file in re.findall(r"`((?:\w+/)+\w+\.py)`", text) if "NAME" not in file}
    places = (ROOT, ROOT / "src" / "fashion_study")
    assert {file for file in files if not any((place / file).exists() for place in places)} == set()


def test_the_life_of_a_trial_has_at_most_20_stops() -> None:
    stops = re.findall(r"^\d+\. .*", (ROOT / "docs" / "life-of-a-trial.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert 10 <= len(stops) <= 20


def test_contributing_names_every_folder() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "src" / "fashion_study").glob("*/__init__.py")}
    assert {name for name in folders if not re.search(rf"^    {name}/ ", page, re.MULTILINE)} == set()
