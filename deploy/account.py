"""Create an account on the MLflow server of a team, or change its password.

    export MLFLOW_TRACKING_URI=http://HOST:5000 MLFLOW_AUTH_ADMIN_PASSWORD=... ACCOUNT_PASSWORD=...
    python3 deploy/account.py ana

Both passwords come from the environment, so that the list of processes never shows them.
"""

import base64
import json
import os
import sys
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

NEEDED = ("MLFLOW_TRACKING_URI", "MLFLOW_AUTH_ADMIN_PASSWORD", "ACCOUNT_PASSWORD")


class RefusedError(Exception):
    """A refused request: the server's message, and MLflow's name for the reason."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def main() -> str:
    """Create the account that the command line names, and return what was done."""
    if len(sys.argv) != 2 or not all(os.environ.get(name) for name in NEEDED):
        raise SystemExit(f"Expected: {' '.join(f'{name}=...' for name in NEEDED)} python3 deploy/account.py NAME")
    try:
        return make(sys.argv[1], os.environ["ACCOUNT_PASSWORD"])
    except RefusedError as error:
        raise SystemExit(f"The server refuses: {error}") from None
    except (OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        raise SystemExit(f"No MLflow server answers ({cause}). Start it, or correct MLFLOW_TRACKING_URI.") from None


def make(name: str, password: str) -> str:
    """Make an account, or give it the password where there is one."""
    account = {"username": name, "password": password}
    try:
        call("POST", "users/create", account)
    except RefusedError as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":
            raise
        call("PATCH", "users/update-password", account)
        return f"{name} has a new password"
    return f"{name} may log in"


def call(method: str, path: str, body: dict[str, str]) -> None:
    """Ask the server as its administrator."""
    login = f"admin:{os.environ['MLFLOW_AUTH_ADMIN_PASSWORD']}".encode()
    headers = {"Authorization": f"Basic {base64.b64encode(login).decode()}", "Content-Type": "application/json"}
    address = f"{os.environ['MLFLOW_TRACKING_URI'].rstrip('/')}/api/2.0/mlflow/{path}"
    try:
        with urlopen(Request(address, json.dumps(body).encode(), headers, method=method), timeout=30):
            pass
    except HTTPError as error:
        raise refusal(error) from None


def refusal(error: HTTPError) -> RefusedError:
    """Read why the server refuses."""
    if error.code == 401:
        return RefusedError("", "admin has another password. Correct MLFLOW_AUTH_ADMIN_PASSWORD.")
    try:
        answer = json.loads(error.read())
        return RefusedError(answer["error_code"], answer["message"])
    except (ValueError, TypeError, KeyError):
        return RefusedError("", f"{error.code} ({error.reason})")


if __name__ == "__main__":
    print(main())
