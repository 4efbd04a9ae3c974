"""The studies of the trial storage, compared with their runs."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from fashion_study.doctor.context import CheckContext
from fashion_study.finding import Finding, Kind, repairing
from fashion_study.store.locks import claim_study
from fashion_study.store.trials import TOKEN, TRACKED_AT, TrialStorage
from fashion_study.study.reconcile import CAUSE, disagreements
from fashion_study.text import printable
from fashion_study.tracking.runs import StudyRuns
from fashion_study.tracking.search import find_run

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

# What every study with a run knows of it.
ATTRS = ("run_id", "experiment_id")


def damaged_studies(context: CheckContext) -> Iterator[Finding]:
    """Compare every study with its runs, but for those that a process is running."""
    if not context.store.has_trials:
        yield from _without_trials(context)
        return
    with context.store.optuna_storage() as storage:
        for name in sorted(study.study_name for study in storage.get_all_studies()):
            yield from _of_study(context, storage, name)


def _of_study(context: CheckContext, storage: "RDBStorage", name: str) -> Iterator[Finding]:
    trial_storage = TrialStorage(storage, name)
    if "run_id" not in trial_storage.attrs:
        return  # Killed before its first run was opened, or another program's.
    if unreadable := [name for name in ATTRS if not isinstance(trial_storage.attrs.get(name), str)]:
        what = f"has no {' and no '.join(unreadable)} that can be read"
        yield Finding(Kind.DATABASE, printable(name), what, "nothing: restore the trial storage from a copy")
        return
    if (elsewhere := trial_storage.attrs.get(TRACKED_AT)) not in (None, context.store.tracked_at):
        context.notes.append(f"Study {printable(name)} keeps its runs at {printable(str(elsewhere))}: not looked at.")
        return
    context.run_trees.add(trial_storage.attrs["run_id"])
    with claim_study(context.store, storage, name) as holder:
        if holder is None:
            yield from _damaged_study(context, trial_storage)
        else:
            context.alive.add(trial_storage.attrs["run_id"])
            context.notes.append(f"Study {name} is being run by {holder}: left alone.")


def _damaged_study(context: CheckContext, trial_storage: TrialStorage) -> Iterator[Finding]:
    run_id = trial_storage.attrs["run_id"]
    run = find_run(context.client, run_id)
    if run is None:
        what = f"has lost its run {run_id}, which was deleted for good"
        remedy = "nothing: start the study again under another name with --study"
        yield Finding(Kind.LOST_RUN, trial_storage.name, what, remedy)
        return
    if run.info.lifecycle_stage != "active":
        # A user's decision, and no damage: run_study restores it where the study goes on.
        context.notes.append(f"Study {trial_storage.name} is deleted in MLflow: left as it is.")
        return
    runs = StudyRuns(context.client, trial_storage.attrs["experiment_id"], run_id)
    context.run_trees.update(runs.unlinked(trial_storage.attrs.get(TOKEN)))
    for found in disagreements(trial_storage, runs):
        yield replace(found, where=f"{trial_storage.name}, {found.where}")
    # The study's own run last: killed before, the rest is found again under a study without a process.
    if run.info.status == "RUNNING":
        yield _abandoned(context, trial_storage.name, run_id)


def _abandoned(context: CheckContext, name: str, run_id: str) -> Finding:
    what = f"run {run_id} is RUNNING, and no process runs the study"
    repair = repairing("its run is KILLED", context.kill, run_id, CAUSE)
    return Finding(Kind.ZOMBIE_STUDY, name, what, "ends the run KILLED; run_study goes on with the study", repair)


def _without_trials(context: CheckContext) -> Iterator[Finding]:
    studies = [run for run in context.runs() if run.data.tags["kind"] == "study"] if context.store.is_embedded else []
    if studies:
        names = ", ".join(sorted({run.data.tags.get("study", run.info.run_id) for run in studies}))
        what = f"is gone, and with it the trial storage of {names}"
        yield Finding(Kind.DATABASE, "optuna.db", what, "nothing: restore the file from a copy")
    elif not context.store.is_embedded:
        context.notes.append(
            f"There is no optuna.db in {context.store.root}, and OPTUNA_STORAGE is not set: only the registry is "
            "looked at."
        )
