"""What every command answers alike: to a store that is none, and to Ctrl-C from its first line on."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from mlflow import environment_variables

from experiments import _entry as entry
from tests.support.processes import started_process
from tests.support.study_store import Studies

ROOT = Path(__file__).parents[2]
# What each one is asked besides, so that nothing but the store is wrong.
WORDS = {
    "doctor": (),
    "predict": (str(ROOT / "docs" / "samples"),),
    "promote": (),
    "replay": ("3",),
    "report": ("digits-smoke",),
    "reproduce_baseline": ("--dataset", "digits"),
    "run_study": ("--space", "smoke", "--dataset", "digits"),
    "ui": (),
}
NEED_A_STORE = ("doctor", "predict", "promote", "replay", "report", "ui")
# Not a measure of anything: how long a refusal may take on a busy machine before something must be wrong.
PATIENCE = 120


def command(name: str, *words: str, python: Sequence[str] = ()) -> list[str]:
    return [sys.executable, *python, "-m", f"experiments.{name}", *WORDS[name], *words]


def run(name: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *words),
        cwd=folder,
        env=os.environ | {"HOME": str(folder), "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], exit_code: int) -> str:
    assert done.returncode == exit_code, done.stderr
    assert done.stderr.startswith("Error: "), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_every_command_is_asked() -> None:
    assert set(WORDS) == {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")}


@pytest.mark.parametrize("name", WORDS)
def test_the_help_breaks_no_line_of_a_narrow_terminal_twice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    about = run(name, tmp_path, "--help").stdout.split("Examples:")[0]
    lines = [line.rstrip() for line in about.splitlines()]
    assert len(lines) > 4
    for line, following in pairwise(lines):
        assert not line or not following or len(f"{line} {following.split()[0]}") >= 80, about


@pytest.mark.parametrize(("variable", "value"), [("HTTP_REQUEST_TIMEOUT", "30s"), ("SQLALCHEMYSTORE_ECHO", "yes")])
def test_a_value_that_mlflow_does_not_take_ends_with_2(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"MLFLOW_{variable}", value)
    monkeypatch.setattr(sys, "argv", ["a command"])
    with pytest.raises(SystemExit) as ended:
        entry.run(lambda: getattr(environment_variables, f"MLFLOW_{variable}").get())
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"Error: MLflow does not take MLFLOW_{variable}: ")
    assert value in said


@pytest.mark.parametrize("name", NEED_A_STORE)
def test_a_store_that_is_not_there_ends_with_3_and_is_not_made(name: str, tmp_path: Path) -> None:
    message = refused(run(name, tmp_path, "--store=nothing"), 3)
    assert "nothing" in message
    assert "--store" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", WORDS)
def test_a_store_without_a_name_ends_with_2(name: str, tmp_path: Path) -> None:
    assert "--store is ''" in refused(run(name, tmp_path, "--store", ""), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", WORDS)
def test_a_file_is_no_store_and_a_tilde_is_the_user_s_home(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file" in refused(run(name, tmp_path, "--store=~/file"), 3)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def interrupted(words: Sequence[str], module: str, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
    """Send a signal when Python has just imported a module; return the exit code and what was said besides imports."""
    said = []
    # So small a pipe that the command waits in the middle of its imports for what is read here.
    with started_process(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, pipesize=4096
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if not line.startswith("import time:"):
                said.append(line)
            elif line.rpartition("|")[2].strip() == module:
                process.send_signal(number)
    return process.returncode, "".join(said)


@pytest.mark.parametrize("module", ["experiments", "typer"])
@pytest.mark.parametrize("name", WORDS)
def test_ctrl_c_during_a_command_s_import_shows_no_traceback(name: str, module: str, tmp_path: Path) -> None:
    words = command(name, "--store", str(tmp_path / "nothing"), python=("-X", "importtime"))
    assert interrupted(words, module) == (130, "Stopped at once.\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_a_command_as_ctrl_c_does(number: signal.Signals, tmp_path: Path) -> None:
    words = command("doctor", "--store", str(tmp_path / "nothing"), python=("-X", "importtime"))
    assert interrupted(words, "typer", number) == (128 + number, "Stopped at once.\n")


CLEANING_UP = """
import os, signal, sys
sys.argv = ["-m"]  # As Python has it while it looks for an entry point.
from experiments._entry import run

def main() -> None:
    try:
        os.kill(os.getpid(), signal.{})
    finally:
        os.kill(os.getpid(), signal.SIGHUP)
        print("cleaned up")

run(main)
"""


@pytest.mark.parametrize(("name", "exit_code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_closing_terminal_interrupts_no_cleaning_up(name: str, exit_code: int) -> None:
    program = CLEANING_UP.format(name)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (exit_code, "cleaned up\n", "Stopped at once.\n")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    studies = Studies(tmp_path_factory.mktemp("interrupted") / "store")
    studies.study("digits-smoke", ended=1)
    return studies.store.root


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("doctor", "mlflow.version"),
        ("doctor", "sqlalchemy.util"),
        ("promote", "numpy.testing"),
        ("run_study", "fashion_study.study.run"),
        ("run_study", "optuna"),
        ("run_study", "scipy.stats"),
        ("ui", "pandas._libs"),
    ],
)
def test_ctrl_c_during_slow_imports_shows_no_traceback(name: str, module: str, store: Path) -> None:
    words = command(name, "--store", str(store), python=("-X", "importtime"))
    assert interrupted(words, module) == (130, "Stopped at once.\n")
