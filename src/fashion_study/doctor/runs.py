"""Runs outside the studies of the trial storage: reproductions of the baseline, and orphan runs."""

from collections.abc import Iterator

from mlflow.entities import Run

from fashion_study.doctor.context import CheckContext, run_title, run_tree
from fashion_study.finding import Finding, Kind, repairing
from fashion_study.store.locks import claim, lock_file
from fashion_study.tracking.attempt import ORPHAN

REPRODUCTION = "baseline reproduction"
# On the run of a reproduction: the lock that its process holds.
LOCK = "lock"


def damaged_reproductions(context: CheckContext) -> Iterator[Finding]:
    """Find reproductions of the baseline that are open although no process works on them."""
    runs = [run for run in context.all_runs() if run.info.lifecycle_stage == "active"]
    is_open = [run for run in runs if run.info.status == "RUNNING"]
    for parent in (run for run in runs if run.data.tags["kind"] == REPRODUCTION):
        nested = [run for run in is_open if run.data.tags["kind"] == "baseline" and run_tree(run) == parent.info.run_id]
        if open_runs := [*nested, *(run for run in is_open if run is parent)]:
            yield from _open_reproduction(context, parent, open_runs)


def _open_reproduction(context: CheckContext, parent: Run, open_runs: list[Run]) -> Iterator[Finding]:
    run_id, lock = parent.info.run_id, parent.data.tags.get(LOCK, "")
    context.run_trees.add(run_id)
    if not lock or not lock_file(context.store.root, lock).is_file():
        if context.store.is_embedded:
            yield from (_abandoned(context, run) for run in open_runs)
            return
        # Of another store or another machine, whose locks cannot be seen from here.
        context.alive.add(run_id)
        context.notes.append(f"Run {run_id} reproduces the baseline, or did: which process does is not known here.")
        return
    with claim(context.store.root, lock) as holder:
        if holder is None:
            yield from (_abandoned(context, run) for run in open_runs)
        else:
            context.alive.add(run_id)
            context.notes.append(f"The baseline is being reproduced by {holder}, in run {run_id}: left alone.")


def _abandoned(context: CheckContext, run: Run) -> Finding:
    what = "is RUNNING, and no process works on it"
    repair = repairing("it is KILLED", context.kill, run.info.run_id, "its process died")
    return Finding(Kind.ZOMBIE_RUN, run_title(run), what, "ends the run KILLED", repair)


def orphan_runs(context: CheckContext) -> Iterator[Finding]:
    """Find the runs of studies, trials and finalists that belong to no study of the trial storage."""
    runs = context.runs()
    if deleted := sum(run.info.lifecycle_stage != "active" for run in runs):
        # A user's decision, and no damage.
        context.notes.append(f"{deleted} runs are deleted in MLflow: left as they are.")
    # A trial storage elsewhere may be another one than that of these runs.
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
