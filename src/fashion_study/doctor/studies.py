"""Each study of the ledger, against its runs."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from fashion_study.doctor.context import Case
from fashion_study.finding import Finding, Kind
from fashion_study.store.study_owner import claim_study
from fashion_study.store.trials import TOKEN, TRACKED_AT, Ledger
from fashion_study.study.reconcile import CAUSE, disagreements
from fashion_study.text import printable
from fashion_study.tracking.attempt import StudyRuns, find_run

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

# What every study with a run remembers of it.
FACTS = ("run_id", "experiment_id")


def damaged_studies(case: Case) -> Iterator[Finding]:
    """Compare every study with its runs, but for those that a process is running."""
    if not case.store.has_ledger:
        yield from _without_ledger(case)
        return
    with case.store.ledger_storage() as storage:
        for name in sorted(study.study_name for study in storage.get_all_studies()):
            yield from _of_study(case, storage, name)


def _of_study(case: Case, storage: "RDBStorage", name: str) -> Iterator[Finding]:
    ledger = Ledger(storage, name)
    if "run_id" not in ledger.facts:
        return  # Killed before it had anything, or somebody else's.
    if unreadable := [fact for fact in FACTS if not isinstance(ledger.facts.get(fact), str)]:
        what = f"has no {' and no '.join(unreadable)} that can be read"
        yield Finding(Kind.DATABASE, printable(name), what, "nothing: restore the ledger from a copy")
        return
    if (elsewhere := ledger.facts.get(TRACKED_AT)) not in (None, case.store.tracked_at):
        case.notes.append(f"Study {printable(name)} keeps its runs at {printable(str(elsewhere))}: not looked at.")
        return
    case.families.add(ledger.facts["run_id"])
    with claim_study(case.store, storage, name) as holder:
        if holder is None:
            yield from _damaged_study(case, ledger)
        else:
            case.alive.add(ledger.facts["run_id"])
            case.notes.append(f"Study {name} is being run by {holder}: left alone.")


def _damaged_study(case: Case, ledger: Ledger) -> Iterator[Finding]:
    run_id = ledger.facts["run_id"]
    run = find_run(case.client, run_id)
    if run is None:
        what = f"has lost its run {run_id}, which was deleted for good"
        remedy = "nothing: start the study anew under another name with --study"
        yield Finding(Kind.LOST_RUN, ledger.name, what, remedy)
        return
    if run.info.lifecycle_stage != "active":
        # Somebody's decision, and no damage: run_study takes it out again where the study goes on.
        case.notes.append(f"Study {ledger.name} is in MLflow's bin: left there.")
        return
    runs = StudyRuns(case.client, ledger.facts["experiment_id"], run_id)
    case.families.update(runs.unnamed(ledger.facts.get(TOKEN)))
    for found in disagreements(ledger, runs):
        yield replace(found, where=f"{ledger.name}, {found.where}")
    # The study's own run last: killed before, the rest is found again under a study without a process.
    if run.info.status == "RUNNING":
        yield _abandoned(case, ledger.name, run_id)


def _abandoned(case: Case, name: str, run_id: str) -> Finding:
    def repair() -> str:
        case.client.set_tag(run_id, "cause", CAUSE)
        case.client.set_terminated(run_id, "KILLED")
        return "its run is KILLED"

    what = f"run {run_id} is RUNNING, and no process runs the study"
    return Finding(Kind.ZOMBIE_STUDY, name, what, "ends the run KILLED; run_study goes on with the study", repair)


def _without_ledger(case: Case) -> Iterator[Finding]:
    studies = [run for run in case.runs() if run.data.tags["kind"] == "study"] if case.store.is_embedded else []
    if studies:
        names = ", ".join(sorted({run.data.tags.get("study", run.info.run_id) for run in studies}))
        what = f"is gone, and with it the ledger of {names}"
        yield Finding(Kind.DATABASE, "optuna.db", what, "nothing: restore the file from a copy")
    elif not case.store.is_embedded:
        case.notes.append(
            f"There is no ledger in {case.store.root}, and OPTUNA_STORAGE names none elsewhere: only the registry is "
            "looked at."
        )
