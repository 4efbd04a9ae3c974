"""The user's own MLflow server: checked before anything is made, and waited for while it is gone."""

import base64
import logging
import os
from collections.abc import Callable
from configparser import ConfigParser
from configparser import Error as ConfigError
from http.client import HTTPException
from ssl import SSLError
from typing import Self
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from fashion_study.errors import StoreError
from fashion_study.paths import expanded
from fashion_study.text import printable, without_passwords

# MLflow itself repeats a request to a server that is gone for minutes, without a message.
ANSWER_SECONDS = 10
# The cheapest request that needs a log-in where the server demands one. Any answer below 500 will do but a refusal.
CHEAP_REQUEST = "/api/2.0/mlflow/experiments/search?max_results=1"
NAME, PASSWORD, TOKEN = (f"MLFLOW_TRACKING_{what}" for what in ("USERNAME", "PASSWORD", "TOKEN"))
# Where one of these is set, MLflow logs in by other means.
OTHER_WAYS = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")
REFUSED = (401, 403)
SHOWN = 200


class RetryNotifier(logging.Filter):
    """The waits for a server that is gone: MLflow's client repeats a request for minutes, and only urllib3 logs it."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        super().__init__()
        self._notify = notify
        self._logger = logging.getLogger("urllib3.connectionpool")
        self.count = 0

    def __enter__(self) -> Self:
        self._logger.addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Count a wait at its second repetition, and keep urllib3 from printing it.

        The first repetition comes at once: often only an idle connection was closed.
        """
        from urllib3.util.retry import Retry

        retry = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if isinstance(retry, Retry) and len(retry.history) == 2:
            self.count += 1
            self._notify(f"the MLflow server does not answer; attempts left: {retry.total}")
        return False


def check_server_reachable(uri: str) -> None:
    """Send one request to the server at `uri` with the user's log-in; an address of anything else is not checked.

    Raises:
        StoreError: it does not answer, or refuses the log-in.
    """
    if not uri.startswith(("http://", "https://")):
        return
    address = uri.rstrip("/")
    request = Request(address + CHEAP_REQUEST)
    if (login := _login()) is not None:
        # A redirection must not carry it elsewhere.
        request.add_unredirected_header("Authorization", login)
    try:
        with urlopen(request, timeout=ANSWER_SECONDS):
            return
    except HTTPError as error:
        with error:
            if error.code in REFUSED and error.url == request.full_url and not any(map(os.environ.get, OTHER_WAYS)):
                raise login_refused(address, f"{error.code} ({error.reason}): {_said(error)}") from None
            if error.code < 500:
                return
            reason = f"it answers with {error.code} ({error.reason})"
    except (OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, SSLError):
            # MLflow has settings of its own for certificates.
            return
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    raise StoreError(
        f"The MLflow server at {address} does not answer: {reason}. Expected an answer within {ANSWER_SECONDS} s. "
        "Start it, or correct MLFLOW_TRACKING_URI; without that variable the store's own database is used."
    )


def hide_login() -> None:
    """Move the log-in of a server's address in `MLFLOW_TRACKING_URI` to the variables that MLflow has for it.

    The address is shown, logged and passed on; those are not. A database's address needs its password and keeps it.
    """
    server = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if server.scheme not in ("http", "https") or "@" not in server.netloc:
        return
    os.environ |= {name: unquote(word) for name, word in ((NAME, server.username), (PASSWORD, server.password)) if word}
    os.environ["MLFLOW_TRACKING_URI"] = server._replace(netloc=server.netloc.rpartition("@")[2]).geturl()


def login_refused(uri: str, answer: str) -> StoreError:
    """Return the error for a server at `uri` that refuses the user's log-in with `answer`."""
    name, _ = _account()
    who = f"the account {name!r}" if name else "a user who names no account"
    return StoreError(
        f"The MLflow server at {without_passwords(uri)} refuses {who}: {answer.rstrip('. ')}. "
        f"Expected a name and a password that it knows. Correct {NAME} and {PASSWORD}, or MLFLOW_TRACKING_URI."
    )


def _login() -> str | None:
    """Return the header with which MLflow logs in, None where the user has neither an account nor a token."""
    name, password = _account()
    if name and password:
        return f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"
    token = os.environ.get(TOKEN)
    return f"Bearer {token}" if token else None


def _account() -> tuple[str | None, str | None]:
    """Return name and password as MLflow finds them: each in its variable, else in MLflow's file."""
    stored = ConfigParser()
    try:
        stored.read(expanded("~/.mlflow/credentials"))
    except (OSError, UnicodeError, ConfigError):
        stored.clear()
    name, password = (
        os.environ.get(key) or stored.get("mlflow", key, raw=True, fallback=None) for key in (NAME, PASSWORD)
    )
    return name, password


def _said(error: HTTPError) -> str:
    """Return the first line of an answer that is no markup."""
    try:
        lines = error.read(10_000).decode(errors="replace").splitlines()
    except (OSError, HTTPException):
        lines = []
    return printable(next((line for line in lines if line and not line.startswith("<")), "no reason given")[:SHOWN])
