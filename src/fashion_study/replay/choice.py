"""The choice of a trial to replay, by what the trial storage alone has of it."""

from fashion_study.errors import BadInputError, StoreError
from fashion_study.store.store import Store
from fashion_study.store.trials import open_study
from fashion_study.trial import FailReason, TrialState

# What ended a trial but not its training, in the middle of an epoch or after the last one.
BESIDES_TRAINING = {
    FailReason.TIMEOUT: "it took longer than --trial-timeout, which says how fast the machine was",
    FailReason.OOM: "it ran out of memory, which says how much the machine had left",
    FailReason.ERROR: "it ended with an error; failure.txt on its run has the traceback",
    FailReason.INTERRUPTED: "it was stopped from outside too often and given up",
}


def run_of_trial(store: Store, number: int, study: str | None) -> str:
    """Return the id of a trial's current run, in the study that was worked on last where none is named.

    Raises:
        BadInputError: there is no such study or trial, or the trial has no end that could be compared.
        StoreError: the store has no trial storage.
    """
    if not store.has_trials:
        raise StoreError(
            f"There is no trial storage in {store.root}: it has no optuna.db. Expected the folder of an earlier study. "
            "Name it with --store, set OPTUNA_STORAGE, or name a run instead of a trial's number."
        )
    with store.optuna_storage() as storage:
        trial_storage = open_study(store, storage, study)
        records = {record.number: record for record in trial_storage.records()}
    label = f"trial {number:03d} of study {trial_storage.name}"
    if number not in records:
        found = f"it has the trials 0 to {max(records)}" if records else "it has none yet"
        raise BadInputError(f"There is no {label}: {found}. Expected one of these; name another study with --study.")
    record = records[number]
    refuse_without_end(label, record.state, record.reason)
    if record.run_id is None:
        raise StoreError(
            f"The trial storage names no run of {label}. Expected one for a trial that has ended. "
            "python -m experiments.doctor looks for damage."
        )
    return record.run_id


def refuse_without_end(label: str, state: TrialState | None, reason: FailReason | None) -> None:
    """Refuse a training that did not come to an end of its own; `state` None: its run says nothing of an end.

    Raises:
        BadInputError: saying why there is nothing to compare with.
    """
    if state in (TrialState.COMPLETE, TrialState.PRUNED) or reason is FailReason.DIVERGED:
        return
    why = "it has not ended" if reason is None else BESIDES_TRAINING[reason]
    raise BadInputError(
        f"{label[0].upper()}{label[1:]} cannot be compared with itself: {why}. "
        "Expected a trial that is complete, pruned or diverged. Name another one."
    )
