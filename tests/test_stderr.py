"""The promise about TensorFlow's messages: they go into a file, and a user's terminal comes back."""

import os
import sys
from pathlib import Path

import pytest

from fashion_study.stderr import stderr_into


def test_messages_of_python_and_of_native_code_go_into_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs" / "messages.log"
    with stderr_into(log):
        os.write(2, b"native\n")
        print("python", file=sys.__stderr__, flush=True)
        print("for the user")
    os.write(2, b"after\n")
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("for the user\n", "after\n")
    assert log.read_text() == "native\npython\n"


def test_the_terminal_comes_back_after_an_error_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="bad"), stderr_into(tmp_path / "log"):
        raise ValueError("bad")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
