"""The studies of the trial storage compared with their runs, and the runs that belong to no study."""

from collections.abc import Container, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow.entities import Run, ViewType

from fashion_study.data.catalog import KINDS
from fashion_study.doctor.checkpoints import useless_checkpoints
from fashion_study.doctor.context import CheckContext, run_title
from fashion_study.finding import Finding, Kind, repairing
from fashion_study.store.locks import claim, claim_study, lock_file
from fashion_study.store.trials import TOKEN, TRACKED_AT, TrialStorage
from fashion_study.study.reconcile import CAUSE, disagreements, identities
from fashion_study.text import printable
from fashion_study.tracking.attempt import ORPHAN
from fashion_study.tracking.runs import StudyRuns
from fashion_study.tracking.search import all_pages, find_run, run_tree

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

REPRODUCTION = "baseline reproduction"


def damaged_studies(context: CheckContext) -> Iterator[Finding]:
    """Compare every study with its runs, but for those that a process is running."""
    if not context.store.has_trials:
        yield from _deleted_experiments(context, set())
        yield from _without_trials(context)
        return
    with context.store.optuna_storage() as storage:
        attrs = {study.study_name: study.user_attrs for study in storage.get_all_studies()}
        here = (each for each in attrs.values() if each.get(TRACKED_AT) in (None, context.store.tracked_at))
        yield from _deleted_experiments(context, {each.get("experiment_id") for each in here})
        for name in sorted(attrs):
            yield from _of_study(context, storage, name)


def _deleted_experiments(context: CheckContext, used: Container[str | None]) -> Iterator[Finding]:
    """Find the deleted experiments that a study has `used` or would begin in."""
    for experiment in all_pages(context.client.search_experiments, view_type=ViewType.DELETED_ONLY):
        if experiment.experiment_id in used or experiment.name in KINDS:
            where = f"experiment {printable(experiment.name)} (id {experiment.experiment_id})"
            what = "is deleted in MLflow with its runs: no study can begin in it or go on"
            repair = repairing("it is restored", context.client.restore_experiment, experiment.experiment_id)
            yield Finding(Kind.DELETED_EXPERIMENT, where, what, "restores it with all of its runs", repair)


def _of_study(context: CheckContext, storage: "RDBStorage", name: str) -> Iterator[Finding]:
    trial_storage = TrialStorage(storage, name)
    if "run_id" not in trial_storage.attrs:
        return  # Killed before its first run was opened, or another program's.
    if not isinstance(trial_storage.attrs["run_id"], str):
        what = "has no run_id that can be read"
        yield Finding(Kind.DATABASE, printable(name), what, "nothing: restore the trial storage from a copy")
        return
    if (place := trial_storage.attrs.get(TRACKED_AT)) not in (None, context.store.tracked_at):
        context.notes.append(f"Study {printable(name)} keeps its runs at {printable(str(place))}: not looked at.")
        return
    context.run_trees.add(trial_storage.attrs["run_id"])
    if (original := trial_storage.original) is not None:
        context.notes.append(f"Study {printable(name)} is a copy of {printable(original)}: not looked at.")
        return
    context.notes.extend(f"Study {printable(name)}: {line}." for line in trial_storage.of_other_programs())
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
        if run.info.experiment_id in context.experiments:
            context.notes.append(f"Study {trial_storage.name} is deleted in MLflow: left as it is.")
        return
    runs = StudyRuns(context.client, run.info.experiment_id, run_id)
    context.run_trees.update(runs.unlinked(trial_storage.attrs.get(TOKEN)))
    # By themselves too: their tag with the run above them may be deleted.
    context.run_trees.update(named for named, _ in identities(trial_storage, run_id))
    for found in disagreements(trial_storage, runs, context.store.checkpoints(trial_storage.name)):
        yield replace(found, where=f"{trial_storage.name}, {found.where}")
    for found in useless_checkpoints(context.store.checkpoints(trial_storage.name)):
        yield replace(found, where=f"{trial_storage.name}, {found.where}")
    # The study's own run last: killed before, the rest is found again under a study without a process.
    if run.info.status == "RUNNING":
        what = f"run {run_id} is RUNNING, and no process runs the study"
        remedy = "ends the run KILLED; run_study goes on with the study"
        repair = repairing("its run is KILLED", context.kill, run_id, CAUSE)
        yield Finding(Kind.ZOMBIE_STUDY, trial_storage.name, what, remedy, repair)


def _without_trials(context: CheckContext) -> Iterator[Finding]:
    if not context.store.is_embedded:
        context.notes.append(
            f"There is no optuna.db in {context.store.root}, and OPTUNA_STORAGE is not set: only the registry is "
            "looked at."
        )
    elif studies := [run for run in context.runs() if run.data.tags["kind"] == "study"]:
        names = ", ".join(sorted({run.data.tags.get("study", run.info.run_id) for run in studies}))
        what = f"is gone, and with it the trial storage of {names}"
        yield Finding(Kind.DATABASE, "optuna.db", what, "nothing: restore the file from a copy")


def damaged_reproductions(context: CheckContext) -> Iterator[Finding]:
    """Find reproductions of the baseline that are open although no process works on them."""
    runs = [run for run in context.all_runs() if run.info.lifecycle_stage == "active"]
    is_open = [run for run in runs if run.info.status == "RUNNING"]
    for parent in (run for run in runs if run.data.tags["kind"] == REPRODUCTION):
        tree = [run for run in is_open if run_tree(run) == parent.info.run_id]
        # The parent last: killed before, the rest is found again.
        if open_runs := sorted(tree, key=lambda run: run is parent):
            yield from _open_reproduction(context, parent, open_runs)


def _open_reproduction(context: CheckContext, parent: Run, open_runs: list[Run]) -> Iterator[Finding]:
    # The lock that its process holds.
    run_id, lock = parent.info.run_id, parent.data.tags.get("lock", "")
    context.run_trees.add(run_id)
    if lock and lock_file(context.store.root, lock).is_file():
        with claim(context.store.root, lock, only_looks=context.store.copies is not None) as holder:
            if holder is None:
                yield from _abandoned(context, open_runs)
                return
        note = f"The baseline is being reproduced by {holder}, in run {run_id}: left alone."
    elif context.store.is_embedded:
        yield from _abandoned(context, open_runs)
        return
    else:
        # Of another store or another machine, whose locks cannot be seen from here.
        note = f"Run {run_id} reproduces the baseline, or did: which process does is not known here."
    context.alive.add(run_id)
    context.notes.append(note)


def _abandoned(context: CheckContext, open_runs: list[Run]) -> Iterator[Finding]:
    for run in open_runs:
        what = "is RUNNING, and no process works on it"
        repair = repairing("it is KILLED", context.kill, run.info.run_id, "its process died")
        yield Finding(Kind.ZOMBIE_RUN, run_title(run), what, "ends the run KILLED", repair)


def orphan_runs(context: CheckContext) -> Iterator[Finding]:
    """Find the runs of studies, trials and finalists that belong to no study of the trial storage."""
    runs = context.runs()
    if deleted := sum(run.info.lifecycle_stage != "active" for run in runs):
        # A user's decision, and no damage.
        context.notes.append(f"{deleted} runs are deleted in MLflow: left as they are.")
    # A trial storage in another place may be another one than that of these runs.
    if not context.store.is_embedded or context.store.database is not None or not context.store.has_trials:
        return
    for run in runs:
        is_ours = run.data.tags["kind"] in ("study", "trial", "finalist") and run.info.lifecycle_stage == "active"
        is_marked = ORPHAN in run.data.tags and run.info.status != "RUNNING"
        if is_ours and not is_marked and run_tree(run) not in context.run_trees:
            yield _orphan_run(context, run)


def _orphan_run(context: CheckContext, run: Run) -> Finding:
    is_open = run.info.status == "RUNNING"

    def repair() -> str:
        context.client.set_tag(run.info.run_id, ORPHAN, "true")
        if is_open:
            context.kill(run.info.run_id, "no study names this run")
        return "it is marked as an orphan"

    what = "belongs to no study of the trial storage"
    remedy = "marks the run as an orphan" + (", ends it KILLED" if is_open else "")
    return Finding(Kind.ORPHAN, run_title(run), what, remedy, repair)
