"""The promises about what libraries read by themselves, and about the messages that they write by themselves."""

import os
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest

from fashion_study.libraries import (
    LEFT_OUT,
    fix_command,
    fix_environment,
    import_without_stderr,
    left_to_the_user,
    stderr_into,
    worker_environment,
)


def test_variables_that_decide_a_training_are_fixed() -> None:
    theirs = {
        "KERAS_BACKEND": "torch",
        "KERAS_NNX_ENABLED": "true",
        "MLFLOW_LOGGING_LEVEL": "verbose",
        "LOKY_MAX_CPU_COUNT": "",
        "MLFLOW_TRACKING_URI": "x",
    }
    with mock.patch.dict(os.environ, dict.fromkeys(LEFT_OUT, "1") | theirs):
        fix_environment()
        fixed = dict(os.environ)
    assert (fixed["KERAS_BACKEND"], fixed["KERAS_NNX_ENABLED"]) == ("tensorflow", "0")
    assert not fixed.keys() & {*LEFT_OUT, "MLFLOW_LOGGING_LEVEL", "LOKY_MAX_CPU_COUNT"}
    assert fixed["MLFLOW_TRACKING_URI"] == "x"


def test_what_is_a_user_s_own_wish_is_left() -> None:
    wishes = {"TF_ENABLE_ONEDNN_OPTS": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_LOGGING_LEVEL": "debug"}
    with mock.patch.dict(os.environ, wishes):
        fix_environment()
        assert {name: os.environ[name] for name in wishes} == wishes


def test_a_command_takes_no_warning_for_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    theirs = {"PYTHONWARNINGS": "error", "MPLBACKEND": "module://of.a.notebook"}
    with mock.patch.dict(os.environ, theirs), warnings.catch_warnings():
        warnings.simplefilter("error")
        fix_command()
        warnings.warn("from a library", DeprecationWarning, stacklevel=1)
        assert os.environ["MPLBACKEND"] == "agg"
        assert "PYTHONWARNINGS" not in os.environ


def test_a_worker_of_a_notebook_has_nothing_of_the_notebook() -> None:
    theirs = {"PYTHONWARNINGS": "error", "MPLBACKEND": "module://of.a.notebook", "KERAS_HOME": "/home/theirs"}
    with mock.patch.dict(os.environ, theirs):
        found = worker_environment()
        assert theirs.items() <= os.environ.items()
    assert (found["MPLBACKEND"], found["KERAS_HOME"]) == ("agg", os.devnull)
    assert "PYTHONWARNINGS" not in found


@pytest.mark.parametrize("theirs", [{}, {"KERAS_HOME": "/home/theirs"}])
def test_keras_is_imported_without_the_user_s_keras_json(
    theirs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"reads_keras_home_{len(theirs)}"
    (tmp_path / f"{name}.py").write_text('import os\nhome = os.environ["KERAS_HOME"]\n')
    monkeypatch.syspath_prepend(tmp_path)
    with mock.patch.dict(os.environ):
        os.environ.pop("KERAS_HOME", None)
        os.environ.update(theirs)
        import_without_stderr(name)
        assert {key: value for key, value in os.environ.items() if key == "KERAS_HOME"} == theirs
    assert sys.modules[name].home == os.devnull


def test_what_can_change_the_last_bits_is_named() -> None:
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(("TF_", "OMP_", "ONEDNN_"))]:
            del os.environ[name]
        assert left_to_the_user() == "none"
        os.environ |= {"TF_XLA_FLAGS": "--a=1 --b", "ONEDNN_MAX_CPU_ISA": "AVX2", "TF_CPP_MIN_LOG_LEVEL": "0"}
        os.environ |= {"TF_ENABLE_ONEDNN_OPTS": "1", "TF_VAR_password": "of Terraform"}
        assert left_to_the_user() == "ONEDNN_MAX_CPU_ISA=AVX2 TF_XLA_FLAGS=--a=1 --b"


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
