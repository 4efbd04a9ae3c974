"""The first use: the time of a fresh clone to a study's first result and through its tests, step by step.

`python -m benchmarks.first_use` clones this checkout's last commit to a temporary folder and runs the steps in it one
after another; nothing is shared with this checkout but pip's cache.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.processes import use_own_stores
from benchmarks.results import FOLDER, Line, publish
from experiments._entry import run

PYTHON = ".venv/bin/python"
STUDY = "--space smoke --dataset digits --trials 4 --finalists 0"
# What it is, and the command; each finds what the earlier ones have made.
STEPS: dict[str, list[str]] = {
    "install, for a study": ["make", ".venv/.project"],
    "first imports": [PYTHON, "-c", "import mlflow, optuna, tensorflow"],
    "the same once more": [PYTHON, "-c", "import mlflow, optuna, tensorflow"],
    "make study, four tiny trials": ["make", "study", f"ARGS={STUDY}"],
    "install, for the tests": ["make", ".venv/.locked-dev"],
    "make check": ["make", "check"],
    "make check once more": ["make", "check"],
    "make test": ["make", "test"],
}


def main(
    with_tests: Annotated[bool, typer.Option("--tests/--no-tests", help="Run the tests, too.")] = True,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "first_use.json",
) -> None:
    """Time every step on a fresh clone; where one fails the times of the earlier ones are kept."""
    use_own_stores()
    seconds: dict[str, float] = {}
    failed = None
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", str(Path.cwd()), str(clone)], check=True)
        steps = {what: command for what, command in STEPS.items() if with_tests or command != ["make", "test"]}
        for what, command in steps.items():
            started = time.monotonic()
            failed = None if _succeeds(command, clone) else what
            seconds[what] = time.monotonic() - started
            print(f"{what}: {seconds[what]:.0f} s", file=sys.stderr)
            if failed:
                break
    lines = [Line(what, f"{taken:.0f} s{', failed' if what == failed else ''}") for what, taken in seconds.items()]
    publish("first use", [], lines, {"seconds": seconds, "failed": failed}, 1, output)
    if failed:
        raise SystemExit(f"This step failed: {failed}. Those after it were not run.")


def _succeeds(command: list[str], clone: Path) -> bool:
    # Another environment that is active here must not be taken for the clone's.
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    # Beside the sheet, which has the standard output for itself; a failing step says there what failed.
    return not subprocess.run(command, cwd=clone, env=environment, stdout=sys.stderr, check=False).returncode


if __name__ == "__main__":
    run(main)
