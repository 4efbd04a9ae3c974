"""What Optuna's own client reads."""

from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial


def trials_of(store: Path, study: str) -> list[FrozenTrial]:
    """Read the trials of a study, and let go of the database: it may be copied or moved next."""
    storage = RDBStorage(f"sqlite:///{store}/optuna.db")
    try:
        return optuna.load_study(study_name=study, storage=storage).trials
    finally:
        storage.engine.dispose()
