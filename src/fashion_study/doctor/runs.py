"""Runs outside the trial storage's studies: reproductions of the baseline, and what belongs to nobody."""

from collections.abc import Iterator

from mlflow.entities import Run

from fashion_study.doctor.context import CheckContext, run_tree
from fashion_study.finding import Finding, Kind
from fashion_study.store.locks import claim, lock_file
from fashion_study.tracking.attempt import ORPHAN

REPRODUCTION = "baseline reproduction"
# On the run of a reproduction: the lock that its process holds.
LOCK = "lock"


def damaged_reproductions(context: CheckContext) -> Iterator[Finding]:
    """Find reproductions of the baseline that are open and that no process works on any more."""
    runs = [run for run in context.all_runs() if run.info.lifecycle_stage == "active"]
    nested = [run for run in runs if run.data.tags["kind"] == "baseline" and run.info.status == "RUNNING"]
    for parent in (run for run in runs if run.data.tags["kind"] == REPRODUCTION):
        open_runs = [run for run in nested if run_tree(run) == parent.info.run_id]
        if parent.info.status == "RUNNING":
            open_runs.append(parent)
        if open_runs:
            yield from _open_reproduction(context, parent, open_runs)


def _open_reproduction(context: CheckContext, parent: Run, open_runs: list[Run]) -> Iterator[Finding]:
    run_id, lock = parent.info.run_id, parent.data.tags.get(LOCK, "")
    context.run_trees.add(run_id)
    if not lock or not lock_file(context.store.root, lock).is_file():
        if not context.store.is_embedded:
            # Of another store or another machine, whose locks cannot be seen from here.
            context.alive.add(run_id)
            context.notes.append(f"Run {run_id} reproduces the baseline, or did: which process does is not known here.")
            return
        yield from (_abandoned(context, run) for run in open_runs)
        return
    with claim(context.store.root, lock) as holder:
        if holder is None:
            yield from (_abandoned(context, run) for run in open_runs)
        else:
            context.alive.add(run_id)
            context.notes.append(f"The baseline is being reproduced by {holder}, in run {run_id}: left alone.")


def _abandoned(context: CheckContext, run: Run) -> Finding:
    def repair() -> str:
        context.client.set_tag(run.info.run_id, "cause", "its process died")
        context.client.set_terminated(run.info.run_id, "KILLED")
        return "it is KILLED"

    where = f"run {run.info.run_id} ({run.info.run_name})"
    return Finding(Kind.ZOMBIE_RUN, where, "is RUNNING, and no process works on it", "ends the run KILLED", repair)


def orphans(context: CheckContext) -> Iterator[Finding]:
    """Find the runs of studies, trials and finalists that no study of the trial storage has anything to do with."""
    if deleted := sum(run.info.lifecycle_stage != "active" for run in context.runs()):
        # Somebody's decision, and no damage.
        context.notes.append(f"{deleted} runs lie in MLflow's bin: left there.")
    # A trial storage elsewhere may be another one than that of these runs.
    if not context.store.is_embedded or context.store.database is not None or not context.store.has_trials:
        return
    for run in context.runs():
        is_ours = run.data.tags["kind"] in ("study", "trial", "finalist") and run.info.lifecycle_stage == "active"
        is_marked = ORPHAN in run.data.tags and run.info.status != "RUNNING"
        if is_ours and not is_marked and run_tree(run) not in context.run_trees:
            yield _orphan(context, run)


def _orphan(context: CheckContext, run: Run) -> Finding:
    def repair() -> str:
        context.client.set_tag(run.info.run_id, ORPHAN, "true")
        if run.info.status == "RUNNING":
            context.client.set_tag(run.info.run_id, "cause", "no study names this run")
            context.client.set_terminated(run.info.run_id, "KILLED")
        return "it is marked as an orphan"

    where = f"run {run.info.run_id} ({run.info.run_name})"
    remedy = "marks the run as an orphan" + (", ends it KILLED" if run.info.status == "RUNNING" else "")
    return Finding(Kind.ORPHAN, where, "belongs to no study of the trial storage", remedy, repair)
