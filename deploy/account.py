"""Make an account on the MLflow server of a team, or give it another password.

    export MLFLOW_TRACKING_URI=http://HOST:5000 MLFLOW_AUTH_ADMIN_PASSWORD=... ACCOUNT_PASSWORD=...
    python3 deploy/account.py ana

Both passwords come from the environment, so that the list of processes never shows them.
"""

import base64
import json
import os
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen


def main() -> str:
    """Make the account that the command line names, and say what was done."""
    account = {"username": sys.argv[1], "password": os.environ["ACCOUNT_PASSWORD"]}
    try:
        call("POST", "users/create", account)
    except HTTPError as error:
        answer = json.loads(error.read() or b"{}")
        if answer.get("error_code") != "RESOURCE_ALREADY_EXISTS":
            raise SystemExit(f"The server refuses: {answer.get('message', error.reason)}") from None
        call("PATCH", "users/update-password", account)
        return f"{sys.argv[1]} has a new password"
    return f"{sys.argv[1]} may log in"


def call(method: str, path: str, body: dict[str, str]) -> None:
    """Ask the server as its administrator."""
    login = f"admin:{os.environ['MLFLOW_AUTH_ADMIN_PASSWORD']}".encode()
    headers = {"Authorization": f"Basic {base64.b64encode(login).decode()}", "Content-Type": "application/json"}
    address = f"{os.environ['MLFLOW_TRACKING_URI'].rstrip('/')}/api/2.0/mlflow/{path}"
    with urlopen(Request(address, json.dumps(body).encode(), headers, method=method), timeout=30):
        pass


if __name__ == "__main__":
    print(main())
