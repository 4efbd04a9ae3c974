"""`make audit` says plainly where it could not look anything up; it never passes by having looked at nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Nobody listens there.
NOWHERE = "http://127.0.0.1:9"


@pytest.mark.faults
def test_an_audit_that_reaches_no_advisories_fails_and_says_so(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    made = [word for name in ("locked", "locked-dev", "project") for word in ("-o", f".venv/.{name}")]
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE)
    # A home of its own: what was looked up before is kept there.
    homes = {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME", "PIP_CACHE_DIR")}

    done = subprocess.run(
        ["make", "--no-print-directory", *made, "audit"],
        cwd=ROOT,
        env=os.environ | proxies | homes,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode != 0
    assert "requirements.lock was not audited: " in done.stderr
    assert "Expected advisories" in done.stderr
    assert "no known vulnerabilities" not in done.stdout
    assert "Traceback" not in done.stderr
