"""In-memory twin of the database with the trials."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.storages import RDBStorage


def memory_storage() -> "RDBStorage":
    """Open an empty Optuna storage that ends with the process."""
    from optuna.storages import RDBStorage

    # Optuna's own in-memory storage never looks again at a trial that was running and waits now.
    return RDBStorage("sqlite:///:memory:")
