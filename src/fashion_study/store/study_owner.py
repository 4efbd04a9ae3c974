"""Who owns a study: one coordinator at a time, in the store's folder, or on PostgreSQL from whichever machine."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from fashion_study.errors import StoreError
from fashion_study.store.locks import LockHolder, claim
from fashion_study.store.postgres import RemoteLockHolder, claim_everywhere, connection_watch
from fashion_study.store.store import Store

if TYPE_CHECKING:
    from optuna.storages import RDBStorage


def claim_study(
    store: Store, storage: "RDBStorage", name: str
) -> AbstractContextManager[LockHolder | None] | AbstractContextManager[RemoteLockHolder | None]:
    """Own a study of a store's trial storage while the block runs, and give None; else who owns it already."""
    return claim(store.root, name) if store.database is None else claim_everywhere(storage, name)


@contextmanager
def sole_coordinator(store: Store, storage: "RDBStorage", name: str) -> Iterator[Callable[[], None]]:
    """Keep a second coordinator off a study, and yield a function that raises StoreError once that is lost.

    Raises:
        StoreError: another process owns the study.
    """
    with claim_study(store, storage, name) as holder:
        if holder is not None:
            raise StoreError(
                f"Study {name!r} is being run by {holder}. Expected one coordinator per study. "
                "Wait for it, stop it, or give this study another name with --study."
            )
        # The operating system takes a lock in the folder from nobody who lives.
        yield (lambda: None) if store.database is None else connection_watch(storage, store.database)
