"""Every commit of this process, whoever's database it is, watched from outside."""

import os
import signal
from collections.abc import Callable
from typing import Any

from sqlalchemy.engine.default import DefaultDialect


def on_every_commit(before: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
    """Call `before` and `after` around every commit that changes something in an SQLite database.

    SQLAlchemy's own event for a commit comes only before it.
    """
    commit: Callable[..., None] = DefaultDialect.do_commit

    def watched(dialect: DefaultDialect, connection: Any) -> None:
        # Nothing was written, or to a database on a server.
        if not getattr(connection, "in_transaction", False):
            commit(dialect, connection)
            return
        before()
        commit(dialect, connection)
        after()

    DefaultDialect.do_commit = watched  # type: ignore[method-assign]


def die_at_commit(number: int) -> None:
    """Kill this process before its commit of that number; 0: never."""
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    on_every_commit(before=count)
