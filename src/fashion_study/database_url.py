"""The address of the PostgreSQL database that has the trial storage, its password kept apart."""

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from fashion_study.errors import BadInputError

if TYPE_CHECKING:
    from sqlalchemy import URL

OPTION, VARIABLE = "--study-db", "OPTUNA_STORAGE"
EXAMPLE = "postgresql://HOST:5432/DATABASE"
DRIVER = "postgresql+psycopg"
# Whatever driver an address names, such as the psycopg2 of Optuna's tutorial, this project's own is used.
SCHEME = re.compile(r"postgres(?:ql)?(?:\+[a-z0-9_]+)?", re.IGNORECASE)
PLACES = f"Put it into {VARIABLE}, PGPASSWORD or ~/.pgpass instead"


@dataclass(frozen=True)
class DatabaseUrl:
    """A PostgreSQL database and a role on it: `uri` is SQLAlchemy's address of it, without the password.

    Where `password` is None, PostgreSQL's own client looks for it in `PGPASSWORD` and in `~/.pgpass`.
    """

    uri: str
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        parts = urlsplit(self.uri)
        return f"{parts.netloc.rpartition('@')[2] or 'the local socket'}{parts.path}"


def trials_database_url(option: str | None) -> DatabaseUrl | None:
    """Return the database of `--study-db` or else of `OPTUNA_STORAGE`; None: a file in the store's folder is used.

    No refusal repeats what was given: it may hold a password.

    Raises:
        BadInputError: it is no address of a PostgreSQL database, or the option holds a password, which every user of
            the machine could read in the list of processes; or the driver is not installed.
    """
    # A variable that comes from a file may have a line break at its end, or quotes.
    given = (option or os.environ.get(VARIABLE, "")).strip(" \r\n\"'")
    if not given:
        return None
    name = OPTION if option else VARIABLE
    url = _parsed(given, name)
    if option and url.password is not None:
        raise BadInputError(
            f"{OPTION} holds a password, which every user of this machine can read in the list of processes. "
            f"Expected for instance {EXAMPLE}. {PLACES}; and choose another one: this one has been seen."
        )
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise BadInputError(
            f"{name} names a PostgreSQL database, and its driver is not installed. Expected the package psycopg. "
            "Install it with: python -m pip install 'psycopg[binary]>=3.2'"
        ) from None
    plain = url.set(drivername=DRIVER)._replace(password=None)
    return DatabaseUrl(plain.render_as_string(), url.password or None)


def _parsed(given: str, name: str) -> "URL":
    # Imported here: it takes a third of a second, and few studies name a database.
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    scheme, _, rest = given.partition("://")
    login, at, place = rest.rpartition("@")
    if "#" in given or any(separator in login for separator in "/?"):
        raise _refused(name, "cannot be read as an address; in a password '/', '?', '#' are written %2F, %3F, %23")
    try:
        # SQLAlchemy would end the password at its first '@'.
        url = make_url(f"{scheme}://{login.replace('@', '%40')}{at}{place}" if rest else given)
    except (ArgumentError, ValueError):
        raise _refused(name, "is no address") from None
    if not SCHEME.fullmatch(url.drivername):
        raise _refused(name, f"names {url.drivername!r}")
    if not (url.database or "").strip("/"):
        raise _refused(name, "names no database")
    if any("password" in key for key, _ in parse_qsl(place.partition("?")[2], keep_blank_values=True)):
        raise _refused(name, f"has a password among its options. {PLACES}")
    return url


def _refused(name: str, found: str) -> BadInputError:
    remedy = f"Unset {VARIABLE}" if name == VARIABLE else f"Leave {OPTION} out"
    return BadInputError(
        f"{name} {found}. Expected the address of a PostgreSQL database, such as {EXAMPLE}. "
        f"{remedy} to keep the trials in the folder of --store."
    )
