"""Optuna's database on PostgreSQL: opened on one connection, which holds the locks on the studies of this process.

A lock of this kind lives as long as the connection that took it. Since there is no other connection, whatever is
written is written by the owner, on whichever machine that is; a connection that was lost is not made again.
"""

import hashlib
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from fashion_study.database_url import DatabaseUrl
from fashion_study.errors import StoreError
from fashion_study.store.failures import opening

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from sqlalchemy import Connection

CONNECT_SECONDS = 10
# The locks of a machine that is gone are free after about a minute, and so is the other side.
KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
OF_THE_SERVER = " ".join(f"-c tcp_{name}={value}" for name, value in KEEPALIVES.items())
UNACKNOWLEDGED_MS = 60_000
# Making the tables takes a second.
MAKING_SECONDS = 60
MAKING = "making the tables"
ADVICE = (
    "Expected a database that this role may log in to and make tables in. Start it, correct --study-db or "
    "OPTUNA_STORAGE, or put the password into PGPASSWORD, ~/.pgpass or OPTUNA_STORAGE."
)
OWN_NAME = "fashion-study "
# PostgreSQL cuts the name of an application after 63 bytes.
NAME_LENGTH = 63


def open_storage(address: DatabaseUrl) -> "RDBStorage":
    """Open Optuna's storage on a database, its tables made first where there are none.

    Raises:
        StoreError: the database cannot be reached or used.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy import event

    options = {"connect_args": _connect_args(address)}
    with opening("Optuna", f"PostgreSQL's database {address}", advice=ADVICE), _making(address, options):
        # Optuna compares versions over a second connection, which is closed again.
        storage = RDBStorage(address.uri, engine_kwargs={**options, "pool_size": 1, "max_overflow": 1})
        event.listen(storage.engine, "do_connect", _lost(address))
        return storage


@contextmanager
def claim_everywhere(storage: "RDBStorage", name: str) -> Iterator[str | None]:
    """Own `name` in a database while the block runs, and yield None, else the connection that owns it already."""
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    key = _key(name)
    with storage.engine.begin() as connection:
        is_ours = connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key})
        holder = None if is_ours else _holder(connection, key)
    try:
        yield holder
    finally:
        if is_ours:
            # Where the connection is gone, so is the lock.
            with suppress(StoreError, SQLAlchemyError), storage.engine.begin() as connection:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})


def connection_watch(storage: "RDBStorage", address: DatabaseUrl) -> Callable[[], None]:
    """Return a function that raises StoreError once the storage's connection, and with it every lock, is lost.

    As long as the server sends nothing, a call polls one socket.
    """
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    with storage.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection

    def require_connection() -> None:
        if not driver.closed and not select.select([driver.fileno()], [], [], 0)[0]:
            return
        try:
            with storage.engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            _lost(address)()

    return require_connection


def _connect_args(address: DatabaseUrl) -> dict[str, object]:
    # Options of the address take precedence; SQLAlchemy would prefer these.
    own = {
        "connect_timeout": CONNECT_SECONDS,
        "application_name": f"{OWN_NAME}process {os.getpid()} on {socket.gethostname()}"[:NAME_LENGTH],
        "tcp_user_timeout": UNACKNOWLEDGED_MS,
        "options": OF_THE_SERVER,
        **KEEPALIVES,
    }
    stated = {name for name in own if f"{name}=" in address.uri.partition("?")[2]}
    secret = {} if address.password is None else {"password": address.password}
    return {name: value for name, value in own.items() if name not in stated} | secret


@contextmanager
def _making(address: DatabaseUrl, options: dict[str, Any]) -> Iterator[None]:
    """Let one process at a time look for the tables and make them: two at once would crash each other."""
    from sqlalchemy import NullPool, create_engine, text

    with create_engine(address.uri, poolclass=NullPool, **options).begin() as connection:
        connection.execute(text(f"SET lock_timeout = '{MAKING_SECONDS}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _key(MAKING)})
        yield


def _lost(address: DatabaseUrl) -> Callable[..., NoReturn]:
    def refuse(*_: object) -> NoReturn:
        raise StoreError(
            f"The connection to PostgreSQL's database {address} is lost, and with it the lock that kept other "
            "coordinators off. Expected both to last as long as the study runs. Every result that was shown is kept; "
            "see to the server, then the same command goes on."
        )

    return refuse


def _key(name: str) -> int:
    digest = hashlib.sha256(f"fashion-study: {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _holder(connection: "Connection", key: int) -> str:
    """Return the connection that holds a lock, as far as this role may see it."""
    from sqlalchemy import text

    # PostgreSQL shows a key of 64 bits in two halves.
    high, low = (key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF
    found = connection.execute(
        text(
            "SELECT application_name, host(client_addr), to_char(backend_start, 'YYYY-MM-DD HH24:MI:SSOF') "
            "FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted "
            "AND classid::bigint = :high AND objid::bigint = :low AND objsubid = 1 "
            "AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ),
        {"high": high, "low": low},
    ).first()
    # Another role's connection shows nothing of itself; one that has just ended is not found.
    if found is None or found[0] is None:
        return "another connection"
    application, address, since = found
    return f"{application.removeprefix(OWN_NAME)} ({address or 'by a local socket'}, connected since {since})"
