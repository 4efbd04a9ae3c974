"""Commands run in this process, as their entry points run them: nothing is imported anew."""

import importlib
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess

import pytest

from experiments import _entry


def call_command(module: str, *words: str, columns: int = 100) -> CompletedProcess[str]:
    """Run `python -m module words...` on a terminal of so many columns; return its exit code and what it printed."""
    main = importlib.import_module(module).main
    output, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setattr(sys, "argv", [module, *words])
        patch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ending:
            _entry.run(main)
    assert isinstance(ending.value.code, int)
    return CompletedProcess([module, *words], ending.value.code, output.getvalue(), errors.getvalue())
