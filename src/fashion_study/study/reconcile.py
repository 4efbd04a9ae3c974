"""What a kill has left between a study's trial storage and its runs, found and mended."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from fashion_study.finding import Finding, Kind
from fashion_study.store.trials import MAX_RETRIES, TOKEN, TrialRecord, TrialStorage
from fashion_study.tracking.attempt import RUN_STATUS, Attempt
from fashion_study.trial import FailReason, TrialState

if TYPE_CHECKING:
    from fashion_study.tracking.runs import StudyRuns

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED)
# A fact of the study: the trials that ended and whose runs were deleted for good.
LOST_RUNS = "lost_runs"
CAUSE = "the coordinator died"


def reconcile(trial_storage: TrialStorage, runs: "StudyRuns") -> list[str]:
    """Mend what a kill has left between a study's trial storage and its runs, and say in a line each what was done.

    The caller holds the study's lock, so whatever is marked as running has no owner. Killed at any point, it does
    what is left the next time; where nothing disagrees it does nothing.

    A kill leaves nothing wrong with a trial that the trial storage calls ended: its run was closed before, and what it
    superseded said so before it was trained. So of most trials no run is read. What something else than a kill may
    have done to those, `disagreements` finds.
    """
    unsettled = [record for record in trial_storage.records() if not _is_settled(record)]
    attempts = runs.unsettled([record.number for record in unsettled if record.attempt > 1])
    numbers = {record.number for record in unsettled} | {attempt.trial for attempt in attempts if not attempt.repeat}
    records = [record for record in trial_storage.records() if record.number in numbers]
    found = _disagreements(trial_storage, runs, records, attempts)
    return [*_mended(found), *fail_pending_models(runs)]


def fail_pending_models(runs: "StudyRuns") -> list[str]:
    """Mark the models whose logging was cut off, while no worker has an attempt in hand, and say so in a line each."""
    return _mended(runs.pending_models())


def disagreements(trial_storage: TrialStorage, runs: "StudyRuns") -> Iterator[Finding]:
    """Find whatever disagrees between a study's trial storage and its runs, while the caller holds the study's lock.

    Each repair leaves what comes after it to be found as if nothing had been wrong.
    """
    yield from _disagreements(trial_storage, runs, trial_storage.records(), runs.attempts())


def _is_settled(record: TrialRecord) -> bool:
    # One is given up while it is mended, before the runs of its earlier attempts say what superseded them.
    return record.state in ENDED and record.reason is not FailReason.INTERRUPTED


def _disagreements(
    trial_storage: TrialStorage, runs: "StudyRuns", records: Sequence[TrialRecord], attempts: Sequence[Attempt]
) -> Iterator[Finding]:
    by_run = {attempt.run_id: attempt for attempt in attempts}
    for record in records:
        attempt = (by_run.get(record.run_id) or runs.find(record.run_id)) if record.run_id else None
        if attempt is not None and attempt.is_deleted and record.state not in ENDED:
            yield _deleted(runs, attempt)
            attempt = runs.find(attempt.run_id)
        # A run that was deleted after its trial had ended stays deleted; the trial storage has the result.
        if attempt is None or not attempt.is_deleted:
            yield from _of_trial(trial_storage, runs, record, attempt)
    yield from _unnamed(trial_storage, runs, [attempt for attempt in attempts if not attempt.repeat])
    yield from _repeats(runs, [attempt for attempt in attempts if attempt.repeat])
    yield from _best(trial_storage, runs)
    yield from (_nameless(runs, run_id) for run_id in runs.unlinked(trial_storage.attrs.get(TOKEN)))


def _mended(findings: Iterable[Finding]) -> list[str]:
    return [f"{found.where} {found.what}; {found.repair()}" for found in findings if found.repair]


def _deleted(runs: "StudyRuns", attempt: Attempt) -> Finding:
    def repair() -> str:
        runs.restore(attempt.run_id)
        return "it is restored now"

    what = f"is not finished, and has its run {attempt.run_id} in MLflow's bin"
    return Finding(Kind.DELETED_RUN, attempt.label, what, "restores the run", repair)


def _of_trial(
    trial_storage: TrialStorage, runs: "StudyRuns", record: TrialRecord, attempt: Attempt | None
) -> Iterator[Finding]:
    """Compare a trial with the run that it names."""
    is_ended = record.state in ENDED
    if attempt is None:
        yield from _without_run(trial_storage, record)
    elif is_ended and (attempt.status, attempt.state) != _expected(record):
        yield _status_mismatch(runs, record, attempt)
    elif not is_ended and attempt.outcome is not None:
        yield _unrecorded_result(trial_storage, runs, record, attempt)
    elif not is_ended and attempt.status == "RUNNING":
        yield _abandoned_attempt(trial_storage, runs, record, attempt)
    elif record.state is TrialState.RUNNING:
        yield _proposed(trial_storage, record)


def _expected(record: TrialRecord) -> tuple[str, str]:
    return RUN_STATUS[record.state], record.state.value


def _without_run(trial_storage: TrialStorage, record: TrialRecord) -> Iterator[Finding]:
    where = _name(record)
    if record.state in ENDED:
        if record.number not in trial_storage.attrs.get(LOST_RUNS, []):

            def note() -> str:
                trial_storage.set_attrs(**{LOST_RUNS: sorted({*trial_storage.attrs.get(LOST_RUNS, []), record.number})})
                return "the trial storage says so now"

            what = f"is {record.state}, and its run {record.run_id} is gone"
            yield Finding(Kind.LOST_RUN, where, what, "notes it in the trial storage, which keeps the result", note)
        return
    if record.run_id is not None:

        def forget() -> str:
            trial_storage.unlink_run(record.number)
            return "it waits for a new one now"

        what = f"is {record.state}, and its run {record.run_id} is gone"
        yield Finding(Kind.LOST_RUN, where, what, "lets the trial wait for a new run", forget)
    elif record.state is TrialState.RUNNING:
        yield _proposed(trial_storage, record)


def _status_mismatch(runs: "StudyRuns", record: TrialRecord, attempt: Attempt) -> Finding:
    def repair() -> str:
        runs.correct(attempt, record.state, record.objective, record.reason)
        return f"its run is {_expected(record)[0]} now"

    what = f"is {record.state}, and its run is {attempt.status} with state {attempt.state or 'none'}"
    return Finding(Kind.STATUS_MISMATCH, _name(record), what, f"sets the run to {_expected(record)[0]}", repair)


def _unrecorded_result(
    trial_storage: TrialStorage, runs: "StudyRuns", record: TrialRecord, attempt: Attempt
) -> Finding:
    """Take over a result whose run was closed before the trial storage heard of it."""
    outcome = attempt.outcome or TrialState.FAILED

    def repair() -> str:
        runs.correct(attempt, outcome, attempt.objective if outcome is TrialState.COMPLETE else None, attempt.reason)
        _settle(trial_storage, record, attempt, outcome)
        return f"it is {outcome} now, as its run says"

    what = f"ended in attempt {attempt.number}, and the trial storage did not hear of it"
    return Finding(Kind.UNRECORDED_RESULT, _name(record), what, f"makes the trial {outcome}, as its run says", repair)


def _settle(trial_storage: TrialStorage, record: TrialRecord, attempt: Attempt, outcome: TrialState) -> None:
    values = {TrialState.COMPLETE: attempt.objective, TrialState.PRUNED: record.curve.get(attempt.epochs_run)}
    reason = attempt.reason if outcome is TrialState.FAILED else None
    trial_storage.adopt_result(record.number, outcome, attempt.epochs_run, attempt.seconds, values.get(outcome), reason)


def _abandoned_attempt(
    trial_storage: TrialStorage, runs: "StudyRuns", record: TrialRecord, attempt: Attempt
) -> Finding:
    def repair() -> str:
        # The trial storage first: an open run of a trial that waits is found again; a running trial without an open
        # run would look as if no worker had begun it.
        state = trial_storage.release(record.number) if record.state is TrialState.RUNNING else record.state
        runs.interrupt_trial(attempt.trial, attempt.run_id, CAUSE, state)
        return f"it is {state} now"

    gives_up = record.state is TrialState.RUNNING and record.counted_attempts > MAX_RETRIES
    remedy = "gives the trial up" if gives_up else "sends the trial back to waiting"
    kind = Kind.ZOMBIE_TRIAL if record.state is TrialState.RUNNING else Kind.ZOMBIE_RUN
    what = f"was cut off in attempt {record.attempt}"
    return Finding(kind, _name(record), what, f"{remedy}, ends its run", repair)


def _proposed(trial_storage: TrialStorage, record: TrialRecord) -> Finding:
    def repair() -> str:
        trial_storage.requeue_unstarted(record.number)
        return "it is waiting now"

    what = "was proposed, and no worker had begun it"
    return Finding(Kind.ZOMBIE_TRIAL, _name(record), what, "sends the trial back to waiting", repair)


def _unnamed(trial_storage: TrialStorage, runs: "StudyRuns", attempts: list[Attempt]) -> Iterator[Finding]:
    """Find the runs that no trial names and that do not say why."""
    named = {record.number: record.run_id for record in trial_storage.records()}
    owners = {run_id: number for number, run_id in named.items() if run_id is not None}
    for attempt in attempts:
        if (owner := owners.get(attempt.run_id, attempt.trial)) != attempt.trial:
            yield _misnamed(runs, attempt, owner)
            continue
        current = named.get(attempt.trial)
        if attempt.run_id == current or attempt.is_deleted:
            continue
        if attempt.status == "RUNNING" and attempt.superseded_by is not None:
            yield _open_run(runs, attempt)  # The next attempt had begun before this one's end was written down.
        elif attempt.status == "RUNNING" or (attempt.is_current and current is None):
            yield _orphan(runs, attempt)
        elif attempt.is_current:
            others = [other for other in attempts if other.trial == attempt.trial and other.status != "RUNNING"]
            yield _duplicate_current(runs, attempt, _successor(attempt, others, str(current)))


def _misnamed(runs: "StudyRuns", attempt: Attempt, owner: int) -> Finding:
    def repair() -> str:
        runs.assign(attempt.run_id, owner)
        return f"it says so now: trial {owner:03d}"

    what = f"says that it is of {attempt.label}, and trial {owner:03d} names it"
    return Finding(Kind.STATUS_MISMATCH, f"run {attempt.run_id}", what, f"lets the run name trial {owner:03d}", repair)


def _orphan(runs: "StudyRuns", attempt: Attempt) -> Finding:
    def repair() -> str:
        runs.mark_orphan(attempt)
        return "it is ended and marked as an orphan now"

    where = f"run {attempt.run_id} of {attempt.label}"
    return Finding(Kind.ORPHAN, where, "belongs to no attempt", "ends the run, marks it as an orphan", repair)


def _duplicate_current(runs: "StudyRuns", attempt: Attempt, successor: str) -> Finding:
    def repair() -> str:
        runs.supersede(attempt.run_id, successor)
        return f"it says now that {successor} superseded it"

    where = f"run {attempt.run_id} of {attempt.label}"
    what = "is not the current one, and does not say so"
    return Finding(Kind.DUPLICATE_CURRENT_RUN, where, what, f"marks it as superseded by {successor}", repair)


def _successor(attempt: Attempt, others: list[Attempt], current: str) -> str:
    """Return the run of the next attempt, as the coordinator would have named it; else the current run."""
    following = (other for other in others if other.number == attempt.number + 1 and not other.is_orphan)
    return next((other.run_id for other in following), current)


def _repeats(runs: "StudyRuns", attempts: list[Attempt]) -> Iterator[Finding]:
    """Find what is wrong with the finalists' repeats, which the trial storage does not know."""
    by_repeat = defaultdict(list)
    for attempt in attempts:
        if attempt.status == "RUNNING" and not attempt.is_deleted:
            yield _open_run(runs, attempt)
        if attempt.is_current:
            by_repeat[attempt.trial, attempt.repeat].append(attempt)
    for rivals in by_repeat.values():
        *earlier, current = sorted(rivals, key=lambda one: (one.outcome is TrialState.COMPLETE, one.number))
        for attempt in earlier:
            yield _duplicate_current(runs, attempt, current.run_id)


def _open_run(runs: "StudyRuns", attempt: Attempt) -> Finding:
    def repair() -> str:
        if (outcome := attempt.outcome) is None:
            runs.interrupt_trial(attempt.trial, attempt.run_id, CAUSE, TrialState.WAITING)
            return "its run is ended now"
        runs.correct(attempt, outcome, attempt.objective, attempt.reason)
        return f"its run says that it is {outcome}, and is ended now"

    what = f"was cut off in attempt {attempt.number}"
    return Finding(Kind.ZOMBIE_RUN, attempt.label, what, "ends its run", repair)


def _best(trial_storage: TrialStorage, runs: "StudyRuns") -> Iterator[Finding]:
    best, shown = trial_storage.best(), runs.best_objective()
    if best is None or best.objective is None or (shown is not None and shown >= best.objective):
        return
    objective = best.objective

    def repair() -> str:
        runs.log_best(trial_storage.counted(), objective)
        return f"it shows {objective:.4f} now"

    what = f"shows {'nothing' if shown is None else f'{shown:.4f}'} as its best objective"
    yield Finding(Kind.STALE_BEST, "the study's run", what, f"logs {objective:.4f}", repair)


def _nameless(runs: "StudyRuns", run_id: str) -> Finding:
    def repair() -> str:
        runs.discard(run_id, CAUSE)
        return "it is ended and marked as an orphan now"

    what = "was opened for the study, which has another one"
    return Finding(Kind.ORPHAN, f"run {run_id}", what, "ends the run, marks it as an orphan", repair)


def _name(record: TrialRecord) -> str:
    return f"trial {record.number:03d}"
