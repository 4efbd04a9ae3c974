"""Where the trial storage lies when a server has it: the address of a PostgreSQL database, its password kept apart."""

import os
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from fashion_study.errors import BadInputError

OPTION, VARIABLE = "--study-db", "OPTUNA_STORAGE"
DRIVER = "psycopg"
EXAMPLE = "postgresql://HOST:5432/DATABASE"
SCHEMES = ("postgresql", "postgres", f"postgresql+{DRIVER}")
ENCODED = "in a password '/', '?', '#' are written %2F, %3F, %23"
PLACES = f"Put it into {VARIABLE}, PGPASSWORD or ~/.pgpass instead"


@dataclass(frozen=True)
class DatabaseUrl:
    """Name a PostgreSQL database and a role on it, as SQLAlchemy wants it in `uri`, without the password.

    Where that is None, PostgreSQL's own client looks for it in `PGPASSWORD` and in `~/.pgpass`.
    """

    uri: str
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        parts = urlsplit(self.uri)
        return f"{parts.netloc.rpartition('@')[2] or 'the local socket'}{parts.path}"


def trials_database_url(option: str | None) -> DatabaseUrl | None:
    """Return the database of the trials: `--study-db`, else `OPTUNA_STORAGE`; None: a file in the store's own folder.

    No refusal repeats what was given: it may hold a password.

    Raises:
        BadInputError: it is no address of a PostgreSQL database, or the option holds a password, which every user of
            the machine could read in the list of processes; or the driver is not installed.
    """
    given = option or os.environ.get(VARIABLE)
    if not given:
        return None
    name = OPTION if option else VARIABLE
    parts = _parsed(given, name)
    if option and parts.password is not None:
        raise BadInputError(
            f"{OPTION} holds a password, which every user of this machine can read in the list of processes. "
            f"Expected for instance {EXAMPLE}. {PLACES}; and choose another one: this one has been seen."
        )
    _require_driver(name)
    role, at, host = parts.netloc.rpartition("@")
    plain = parts._replace(scheme=SCHEMES[-1], netloc=role.partition(":")[0] + at + host)
    return DatabaseUrl(plain.geturl(), unquote(parts.password) if parts.password else None)


def _parsed(given: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(given)
        _ = parts.port
    except ValueError:
        raise _refused(name, f"cannot be read as an address; {ENCODED}") from None
    if parts.scheme not in SCHEMES:
        known = parts.scheme if "://" in given else ""
        raise _refused(name, f"names {known!r}" if known else "is no address")
    if "@" in parts.path + parts.query + parts.fragment:
        # Part of a password: one of these ends the name of the host before it.
        raise _refused(name, f"has an '@' behind the host; {ENCODED}")
    if not parts.path.strip("/") or parts.fragment:
        raise _refused(name, "names no database")
    if any("password" in key for key, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise _refused(name, f"has a password among its options. {PLACES}")
    return parts


def _refused(name: str, found: str) -> BadInputError:
    return BadInputError(
        f"{name} {found}. Expected the address of a PostgreSQL database, such as {EXAMPLE}. "
        "Without one the trial storage lies in the folder of --store."
    )


def _require_driver(name: str) -> None:
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise BadInputError(
            f"{name} names a PostgreSQL database, and its driver is not installed. Expected the package {DRIVER}. "
            "Install it with: python -m pip install 'psycopg[binary]>=3.2'"
        ) from None
