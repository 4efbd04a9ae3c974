"""Passwords in addresses: kept out of whatever a person, a log or another process can read."""

import os
import re
from urllib.parse import unquote, urlsplit

# From the scheme to the last @ before the host: a password may hold an @ of its own.
USER_INFO = re.compile(r"(?<=://)[^/\s'\"]*@")


def without_passwords(text: str) -> str:
    """Return a text without the names and passwords of the addresses in it."""
    return USER_INFO.sub("", text)


def hide_login() -> None:
    """Take name and password out of a server's address in `MLFLOW_TRACKING_URI`: MLflow has variables of their own.

    The address is told, logged and handed on; those are not. A database's address needs its password and keeps it.
    """
    server = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if server.scheme not in ("http", "https") or "@" not in server.netloc:
        return
    login = {"MLFLOW_TRACKING_USERNAME": server.username, "MLFLOW_TRACKING_PASSWORD": server.password}
    os.environ |= {name: unquote(word) for name, word in login.items() if word}
    os.environ["MLFLOW_TRACKING_URI"] = server._replace(netloc=server.netloc.rpartition("@")[2]).geturl()
