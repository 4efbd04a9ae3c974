"""The promises of `python -m experiments.replay` that need no training."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFUSED = """
import sys
from pathlib import Path
from experiments.replay import main
try:
    main(sys.argv[1], store=Path(sys.argv[2]))
except Exception as error:
    print(error.exit_code, sorted({"keras", "mlflow", "optuna", "tensorflow"} & set(sys.modules)))
"""


@pytest.mark.parametrize(("trial", "code"), [("the best", 2), ("3", 3)])
def test_what_can_be_refused_at_once_waits_for_no_slow_library(trial: str, code: int, tmp_path: Path) -> None:
    store = tmp_path / "nothing"
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, trial, str(store)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{code} []\n", "")
    assert list(tmp_path.iterdir()) == []
