"""Who runs which code, and where: the tags of every run."""

import hashlib
import os
import socket
from functools import cache
from getpass import getuser
from pathlib import Path
from subprocess import DEVNULL, CalledProcessError, check_output

from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_SOURCE_NAME, MLFLOW_USER


@cache
def provenance() -> dict[str, str]:
    """Return the user, the machine and the code of this process, as tags of a run."""
    from importlib.metadata import version

    tags = {
        MLFLOW_SOURCE_NAME: "fashion_study",
        MLFLOW_USER: _user(),
        "host": socket.gethostname(),
        "code_version": version("fashion-study"),
        "code_digest": code_digest(),
    }
    if commit := code_commit():
        tags[MLFLOW_GIT_COMMIT] = commit
    return tags


@cache
def code_commit() -> str | None:
    """Return the git commit of this code, with `+` where files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # Where git does not track this file, the checkout is another project's that this package was installed into.
        check_output([*git, "ls-files", "--error-unmatch", Path(__file__).name], stderr=DEVNULL)
        commit = check_output([*git, "rev-parse", "HEAD"], text=True, stderr=DEVNULL).strip()
        changed = check_output([*git, "status", "--porcelain"], text=True, stderr=DEVNULL).strip()
    except (OSError, CalledProcessError):
        return None
    return f"{commit}+" if changed else commit


def code_digest() -> str:
    """Return the SHA-256 of this package's Python files, which identifies the code outside a checkout too."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):  # A container's user need not have a name.
        return str(os.getuid())
