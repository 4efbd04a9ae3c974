"""The promises of `python -m experiments.promote`: refusals at once, evidence as a table, exit codes, a real study."""

import re
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest

from experiments._entry import run
from experiments.promote import main
from tests.support.finished import copy_store


def call(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Run the command in this process, as its entry point does, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["promote", *options])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ending:
        run(main)
    assert isinstance(ending.value.code, int)
    return ending.value.code


def words(text: str) -> str:
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--study", "s", "--version", "1"], "--study and --version both name the challenger"),
        (["--run", "r", "--version", "1"], "--run and --version both name the challenger"),
        (["--rollback", "--force", "why"], "--rollback goes one step back from the champion; --force does not go"),
        (["--rollback", "--dry-run"], "--dry-run does not go with it"),
        (["--rollback", "--run", "r"], "--run does not go with it"),
        (["--rollback", "--version", "1"], "--version does not go with it"),
        (["--force", "why", "--dry-run"], "--force skips the evidence and --dry-run shows it"),
        (["--force", ""], "--force has a reason of 0 characters. Expected 1 to 500"),
        (["--force", "   "], "--force has a reason of 0 characters"),
        (["--force", "x" * 501], "--force has a reason of 501 characters"),
        (["--run", ""], "--run is empty"),
        (["--study", " "], "--study is empty"),
        (["--version", "0"], "Invalid value for '--version'"),
        (["--version", "latest"], "Invalid value for '--version'"),
        (["--unknown"], "No such option: --unknown"),
    ],
)
def test_contradicting_options_are_refused_before_any_store(
    options: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = tmp_path / "store"
    assert call(monkeypatch, "--store", str(store), *options) == 2
    printed = capsys.readouterr()
    assert expected in words(printed.err)
    assert (printed.out, "Traceback" in printed.err) == ("", False)
    assert not store.exists()


def test_a_store_that_is_not_there_is_refused_as_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--store", str(tmp_path / "nothing")) == 3
    assert "There is no store in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_server_is_refused_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    assert call(monkeypatch, "--store", str(tmp_path / "store"), "--dry-run") == 3
    assert "does not answer" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_database_is_refused_as_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_text("This was a database once; something else has been written over it.")
    assert call(monkeypatch, "--store", str(tmp_path)) == 3
    printed = capsys.readouterr()
    assert "mlflow.db" in printed.err
    assert "Traceback" not in printed.err


def test_every_command_of_the_tutorial_works_on_a_real_study(
    finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(copy_store(finished_study, tmp_path / "store"))]

    def answers(*options: str) -> tuple[int, str]:
        code = call(monkeypatch, *store, *options)
        return code, words(capsys.readouterr().out)

    code, text = answers("--dry-run")
    assert code == (0 if "would become champion" in text else 1)
    assert "Holdout: 359 images, read once for the challengers of study digits-smoke (this time included)" in text
    assert "A dry run: no alias was moved" in text
    for gate in ("accuracy", "recall per class", "parameters", "latency", "fidelity", "signature"):
        assert gate in text
    assert "0 of 359 validation images predicted otherwise than logged" in text

    code, text = answers("--study", "digits-smoke", "--force", "first look")
    assert code == 0
    assert "Promoted by force (first look): digits-cnn version 1 is champion now, the first one." in text
    code, text = answers()
    assert (code, text) == (0, "Nothing to do: digits-cnn version 1 is the champion.")
    code = call(monkeypatch, *store, "--rollback")
    assert code == 1
    assert "no version was champion before it" in capsys.readouterr().err
