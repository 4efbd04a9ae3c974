"""The studies of a store, found by name."""

from datetime import datetime

import optuna
from optuna.storages import RDBStorage

from fashion_study.errors import BadInputError
from fashion_study.store.store import Store
from fashion_study.store.trials import TrialStorage
from fashion_study.text import did_you_mean, shown, shown_list


def open_study(store: Store, storage: RDBStorage, name: str | None = None) -> TrialStorage:
    """Open the trial storage of an earlier study, by default of the one that was worked on last.

    Raises:
        BadInputError: there is no study of that name, or none at all.
    """
    known, place = optuna.get_all_study_names(storage), store.database or store.root
    if not known:
        raise BadInputError(f"There is no study in {place}. Run one with python -m experiments.run_study.")
    if name is not None and name not in known:
        raise BadInputError(
            f"There is no study {shown(name)} in {place}{did_you_mean(name, dict.fromkeys(known))}. "
            f"Expected one of: {shown_list(tuple(known))}. Name another store with --store."
        )
    return TrialStorage(storage, name or max(known, key=lambda each: _worked_on(storage, each)))


def _worked_on(storage: RDBStorage, study: str) -> datetime:
    """Return when a trial of a study last began or ended."""
    trials = optuna.load_study(study_name=study, storage=storage).get_trials(deepcopy=False)
    moments = (trial.datetime_complete or trial.datetime_start for trial in trials)
    return max((moment for moment in moments if moment is not None), default=datetime.min)  # noqa: DTZ901
