"""The user's own MLflow server: checked before anything is made, and waited for while it is gone."""

import base64
import logging
import os
from collections.abc import Callable
from configparser import ConfigParser
from configparser import Error as ConfigError
from http.client import HTTPException
from importlib.util import find_spec
from socket import gaierror
from ssl import SSLError
from typing import TYPE_CHECKING, Self
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener, getproxies, proxy_bypass

from fashion_study.errors import StoreError
from fashion_study.paths import expanded
from fashion_study.text import printable, without_passwords

if TYPE_CHECKING:
    from http.client import HTTPResponse

# MLflow itself repeats a request to a server that is gone for minutes, without a message.
ANSWER_SECONDS = 10
# The cheapest request that needs a log-in where the server demands one. Any answer below 500 will do but a refusal.
CHEAP_REQUEST = "/api/2.0/mlflow/experiments/search?max_results=1"
NAME, PASSWORD, TOKEN = (f"MLFLOW_TRACKING_{what}" for what in ("USERNAME", "PASSWORD", "TOKEN"))
# Where one of these is set, MLflow logs in by other means.
OTHER_WAYS = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")
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
    """Send one request to the server at `uri` with the user's log-in.

    Raises:
        StoreError: it does not answer, answers as no MLflow server does, or refuses the log-in.
    """
    address = uri.rstrip("/")
    request = Request(address + CHEAP_REQUEST)
    if (login := _login()) is not None:
        # A redirection must not carry it elsewhere.
        request.add_unredirected_header("Authorization", login)
    proxy = _proxy(address)
    if proxy is not None and proxy.startswith("socks") and find_spec("socks") is not None:
        return  # MLflow's client reaches it with PySocks; urllib cannot.
    if (failure := _failure(request, proxy)) is None:
        return
    reason, advice = failure
    if proxy is not None:
        reason += f" (asked through the proxy {without_passwords(proxy)})"
        advice = f"Add {urlsplit(uri).hostname} to NO_PROXY if it needs no proxy, or correct HTTP_PROXY or ALL_PROXY"
    raise StoreError(
        f"The MLflow server at {address} does not answer: {reason}. Expected an answer within {ANSWER_SECONDS} s. "
        f"{advice}; without MLFLOW_TRACKING_URI the store's own database is used."
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


def _proxy(address: str) -> str | None:
    """Return the proxy of the environment through which MLflow reaches an address."""
    server, proxies = urlsplit(address), getproxies()
    proxy = proxies.get(server.scheme) or proxies.get("all")
    return None if proxy is None or proxy_bypass(server.hostname or "") else proxy


def _failure(request: Request, proxy: str | None) -> tuple[str, str] | None:
    """Return what is wrong with the answer to a request, and what to do about it; None where nothing is."""
    # As MLflow's client takes it, which knows ALL_PROXY as well.
    opener = build_opener(ProxyHandler({} if proxy is None else {request.type: proxy}))
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as answer:
            is_right = _has_other_ways() or _is_mlflow(_read(answer))
            return None if is_right else ("a web page answers, and no MLflow server", "Correct the address")
    except HTTPError as error:
        with error:
            return _refusal(request, error, proxy)
    except (OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, SSLError):
            # MLflow has settings of its own for certificates.
            return None
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        return reason, "Correct the host's name" if isinstance(cause, gaierror) else "Start it, or correct the address"


def _refusal(request: Request, error: HTTPError, proxy: str | None) -> tuple[str, str] | None:
    said, is_final = _read(error), error.url == request.full_url and not _has_other_ways()
    answered = f"{error.code} ({error.reason})"
    reason = f"it answers with {answered}"
    if "Host header" in said:
        return f"{reason}: {_first_line(said)}", f"Start it with --allowed-hosts {request.host}"
    # A proxy refuses with 403, too.
    if is_final and (error.code == 401 or (error.code == 403 and proxy is None)):
        raise login_refused(request.full_url.removesuffix(CHEAP_REQUEST), f"{answered}: {_first_line(said)}")
    if error.code < 500 and (not is_final or _is_mlflow(said)):
        return None
    return reason, "Correct the path in its address" if error.code == 404 else "Start it, or correct the address"


def _has_other_ways() -> bool:
    return any(map(os.environ.get, OTHER_WAYS))


def _read(answer: "HTTPResponse | HTTPError") -> str:
    """Return the beginning of an answer's text."""
    try:
        return answer.read(10_000).decode(errors="replace").strip()
    except (OSError, HTTPException):
        return ""


def _is_mlflow(said: str) -> bool:
    """Return whether an answer may be MLflow's, which is a JSON object; so is an error of other servers'."""
    return not said or (said.startswith("{") and not said.startswith('{"detail"'))


def _first_line(said: str) -> str:
    """Return the first line of an answer that is no markup."""
    lines = (line for line in said.splitlines() if line and not line.startswith("<"))
    return printable(next(lines, "no reason given")[:SHOWN])
