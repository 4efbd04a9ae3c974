"""The address in `MLFLOW_TRACKING_URI`: refused where it can be none, and tried once."""

import os
import re
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from fashion_study.errors import StoreError
from fashion_study.store.mlflow_server import check_server_reachable
from fashion_study.text import did_you_mean, printable, without_passwords

VARIABLE = "MLFLOW_TRACKING_URI"
SERVERS = ("http", "https")
# As MLflow knows them, each with the package of the driver that SQLAlchemy takes by default.
DATABASES = {"postgresql": "psycopg[binary]", "mysql": "mysqlclient", "mssql": "pyodbc"}
OTHERS = ("sqlite", "databricks", "databricks-uc", "uc")
# Files of MLflow's and of its HTTP client's; without one MLflow's error names neither the variable nor the server.
CERTIFICATES = (
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)
MEANT = "http://HOST:PORT of a server, or no such variable: --store names a folder for the runs"


def check_address(uri: str) -> None:
    """Refuse what cannot be an address of MLflow's data, before anything is asked or made.

    Raises:
        StoreError: with the address that was probably meant.
    """
    tidy, scheme = uri.strip(" \t\r\n'\""), _scheme(uri)
    found, expected = "", MEANT
    if tidy != uri:
        found, expected = "has a space, a line break or a quote around it", tidy or MEANT
    elif re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        found, expected = "does not begin with http://", f"http://{uri}"
    elif scheme in SERVERS:
        found, expected = _no_server(uri)
    elif scheme in ("", "file"):
        # MLflow's own way to keep on using them.
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("1", "true"):
            return
        found = "names a folder, and MLflow keeps no runs in plain files any more"
    elif scheme not in (known := (*DATABASES, *OTHERS, *_plugins())):
        guess = did_you_mean(scheme, dict.fromkeys(known))
        found = f"begins with {printable(scheme)}:, which MLflow does not know{guess}"
    if found:
        given, expected = _without_login(uri), _without_login(expected)
        raise StoreError(f"{VARIABLE} is {printable(repr(given))}, which {found}. Expected {expected}.")


def check_reachable(uri: str) -> None:
    """Ask the server or the database server at `uri` once, with the user's log-in; anything else is not checked.

    Raises:
        StoreError: it does not answer, or refuses the log-in; or a database's driver is not installed.
    """
    if _scheme(uri) in SERVERS:
        if _scheme(uri) == "https":
            _check_certificates()
        check_server_reachable(uri)
    elif _scheme(uri) in DATABASES:
        _check_database(uri)


def _scheme(uri: str) -> str:
    """Return how an address begins, without its driver; empty for a path."""
    return uri.partition(":")[0].partition("+")[0].lower() if ":" in uri or uri == "databricks" else ""


def _without_login(uri: str) -> str:
    # A database's password may have a slash in it, and a page of a server an at sign.
    return without_passwords(uri if "http" in _scheme(uri) else re.sub("//.*@", "//", uri))


def _plugins() -> list[str]:
    return [plugin.name for plugin in entry_points(group="mlflow.tracking_store")]


def _no_server(uri: str) -> tuple[str, str]:
    """Return what keeps an address from being a server's, and the one that was meant; nothing where it is one."""
    try:
        parts = urlsplit(uri)
        if parts.hostname and parts.port != 0 and uri.isprintable() and " " not in uri:
            server = parts._replace(path=parts.path.rstrip("/"), query="", fragment="").geturl()
            what = "is the address of a page" if parts.query or parts.fragment else "begins with capital letters"
            return ("", "") if server == uri.rstrip("/") else (what, server)
    except ValueError:
        pass
    return "names no host, or no port", "http://HOST:PORT"


def _check_certificates() -> None:
    for name in CERTIFICATES:
        if (path := os.environ.get(name)) and not os.access(path, os.R_OK):
            raise StoreError(
                f"{name} is {printable(path)}, which is not there or may not be read. Expected certificates for the "
                f"server of {VARIABLE}. Correct it, or unset it."
            )


def _check_database(uri: str) -> None:
    """Connect once: MLflow itself would try for two minutes."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    place = _without_login(uri)
    try:
        create_engine(uri, poolclass=NullPool).connect().close()
    except ImportError as error:
        raise StoreError(
            f"{VARIABLE} is {place}, and the driver of that database is not installed: {error}. Expected it beside "
            f"MLflow. For an address that names no driver: python -m pip install '{DATABASES[_scheme(uri)]}'"
        ) from None
    except (SQLAlchemyError, ValueError) as error:
        reason = without_passwords(str(getattr(error, "orig", None) or error).partition("\n")[0]).rstrip(".")
        raise StoreError(
            f"The database of {VARIABLE}, {place}, cannot be opened: {reason}. Expected one that answers and takes "
            "this log-in. Start it, or correct the address; without that variable the store's own database is used."
        ) from error
