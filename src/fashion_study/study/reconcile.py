"""The differences that a kill leaves between a study's trial storage and its runs, found and repaired."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_study.finding import Finding, Kind, repairing
from fashion_study.store.checkpoints import epoch_reached
from fashion_study.store.trials import MAX_RETRIES, TOKEN, TrialRecord, TrialStorage
from fashion_study.text import shown_list
from fashion_study.tracking.attempt import RUN_STATUS, Attempt
from fashion_study.trial import FailReason, TrialState, trial_seed

if TYPE_CHECKING:
    from fashion_study.tracking.runs import StudyRuns

# An attribute of the study: the trials that ended and whose runs were deleted for good.
LOST_RUNS = "lost_runs"
CAUSE = "the coordinator died"
# What becomes of a run without a trial.
ORPHANS = "ends the run, marks it as an orphan"
ORPHANED = "it is ended and marked as an orphan now"
# The most that can be asked for.
MOST_REPEATS = 100


def reconcile(trial_storage: TrialStorage, runs: "StudyRuns", checkpoints: Path | None = None) -> list[str]:
    """Repair what a kill has left between a study's trial storage and its runs; return a line for each repair.

    The caller holds the study's lock, so no process works on what is marked as running. Killed at any point, it does
    the rest the next time; where nothing disagrees it does nothing.

    A kill leaves nothing wrong with a trial that has ended in the trial storage: its run was closed before, and the
    runs that it superseded were marked before it was trained. So of most trials no run is read. `disagreements` finds
    what other causes may have done to those.
    """
    records = trial_storage.records()
    # A trial can be given up during a repair, before the runs of its earlier attempts are marked as superseded.
    unsettled = [each for each in records if not each.state.is_ended or each.reason is FailReason.INTERRUPTED]
    attempts = runs.unsettled([record.number for record in unsettled if record.attempt > 1])
    numbers = {record.number for record in unsettled} | {attempt.trial for attempt in attempts if not attempt.repeat}
    findings = _Comparison(trial_storage, runs, checkpoints).findings(
        [each for each in records if each.number in numbers], attempts
    )
    return [*_repaired(findings), *fail_pending_models(runs)]


def fail_pending_models(runs: "StudyRuns") -> list[str]:
    """Mark the models whose logging was cut off as failed, while no worker has an attempt; return a line for each."""
    return _repaired(runs.pending_models())


def disagreements(trial_storage: TrialStorage, runs: "StudyRuns", checkpoints: Path | None = None) -> Iterator[Finding]:
    """Find every difference between a study's trial storage and its runs, while the caller holds the study's lock.

    After a repair the rest is found as if that difference had never been.
    """
    attempts = {attempt.run_id: attempt for attempt in runs.attempts()}
    for run_id, tags in identities(trial_storage, runs.run_id):
        attempt = attempts.get(run_id) or runs.find(run_id)
        if attempt is not None and (lost := _lost_tags(trial_storage, attempt, tags)):
            attempts.pop(run_id, None)
            what = f"lacks these tags, or has others: {shown_list(lost)}"
            repair = repairing("they are as they were", runs.tag, run_id, lost)
            yield Finding(Kind.STATUS_MISMATCH, f"run {run_id}", what, "sets them as they were", repair)
    yield from _Comparison(trial_storage, runs, checkpoints).findings(trial_storage.records(), list(attempts.values()))


def identities(trial_storage: TrialStorage, study_run: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the runs that the trial storage names, each with the tags that say what it is."""
    # Imported where runs are at hand: a study is refused without MLflow.
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    study = {"study": trial_storage.name}
    yield study_run, study | {"kind": "study"}
    below = study | {MLFLOW_PARENT_RUN_ID: study_run}
    for record in trial_storage.records():
        if record.run_id is not None:
            own = {"kind": "trial", "trial": str(record.number), "attempt": str(record.attempt)}
            yield record.run_id, below | own
    for finalist in trial_storage.attrs.get("finalists") or ():
        for run_id in finalist["run_ids"]:
            yield run_id, below | {"kind": "finalist", "trial": str(finalist["trial"])}


def _lost_tags(trial_storage: TrialStorage, attempt: Attempt, expected: dict[str, str]) -> dict[str, str]:
    """Return the tags that say what a run is, and that it lacks or has otherwise: anybody can edit them in MLflow."""
    if attempt.is_deleted:
        return {}
    if expected["kind"] == "finalist" and not attempt.repeat:
        seed = trial_storage.attrs.get("identity", {}).get("seed", 0)
        seeds = {str(trial_seed(seed, int(expected["trial"]), n)): str(n) for n in range(1, MOST_REPEATS + 1)}
        if (repeat := seeds.get(attempt.tags.get("seed", ""))) is not None:
            expected |= {"repeat": repeat}
    if "attempt" in attempt.tags:
        expected.pop("attempt", None)  # Between two attempts the trial storage can be one ahead.
    return {key: value for key, value in expected.items() if attempt.tags.get(key) != value}


def _repaired(findings: Iterable[Finding]) -> list[str]:
    return [f"{found.where} {found.what}; {found.repair()}" for found in findings if found.repair]


@dataclass(frozen=True)
class _Comparison:
    """A study's trial storage compared with its runs."""

    trials: TrialStorage
    runs: "StudyRuns"
    checkpoints: Path | None

    def findings(self, records: Sequence[TrialRecord], attempts: Sequence[Attempt]) -> Iterator[Finding]:
        by_run = {attempt.run_id: attempt for attempt in attempts}
        for record in records:
            attempt = (by_run.get(record.run_id) or self.runs.find(record.run_id)) if record.run_id else None
            if attempt is not None and attempt.is_deleted and not record.state.is_ended:
                what = f"is not finished, and its run {attempt.run_id} is deleted in MLflow"
                repair = repairing("it is restored now", self.runs.restore, attempt.run_id)
                yield Finding(Kind.DELETED_RUN, attempt.label, what, "restores the run", repair)
                attempt = self.runs.find(attempt.run_id)
            # A run that was deleted after its trial had ended stays deleted; the trial storage has the result.
            if attempt is None or not attempt.is_deleted:
                yield from self._trial(record, attempt)
        yield from self._unlinked([each for each in attempts if not each.repeat and each.tags.get("kind") == "trial"])
        yield from self._repeats([attempt for attempt in attempts if attempt.repeat])
        yield from self._best()
        for run_id in self.runs.unlinked(self.trials.attrs.get(TOKEN)):
            what = "was opened for the study, which has another one"
            repair = repairing(ORPHANED, self.runs.discard, run_id, CAUSE)
            yield Finding(Kind.ORPHAN, f"run {run_id}", what, ORPHANS, repair)

    def _trial(self, record: TrialRecord, attempt: Attempt | None) -> Iterator[Finding]:
        """Compare a trial with its run."""
        is_ended, expected = record.state.is_ended, (RUN_STATUS.get(record.state), record.state)
        if attempt is None and (is_ended or record.run_id is not None):
            yield from self._lost_run(record)
        elif attempt is not None and is_ended and (attempt.status, attempt.state) != expected:
            status = RUN_STATUS[record.state]
            what = f"is {record.state}, and its run is {attempt.status} with state {attempt.state or 'none'}"
            result = record.state, record.objective, record.reason
            repair = repairing(f"its run is {status} now", self.runs.correct, attempt, *result)
            yield Finding(Kind.STATUS_MISMATCH, record.label, what, f"sets the run to {status}", repair)
        elif attempt is not None and not is_ended and attempt.outcome is not None:
            yield self._unrecorded_result(record, attempt, attempt.outcome)
        elif attempt is not None and not is_ended and attempt.status == "RUNNING":
            yield self._abandoned_attempt(record, attempt)
        elif attempt is not None and record.state is TrialState.RUNNING and attempt.state == TrialState.PAUSED:
            what, remedy = f"was paused after epoch {attempt.epochs_run}", "pauses the trial"
            repair = repairing("it is paused now", self.trials.pause, record.number, attempt.epochs_run)
            yield Finding(Kind.UNRECORDED_RESULT, record.label, what, remedy, repair)
        elif record.state is TrialState.RUNNING:
            what = "was proposed, and no worker had begun it"
            repair = repairing("it is waiting now", self.trials.requeue_unstarted, record.number)
            yield Finding(Kind.ZOMBIE_TRIAL, record.label, what, "sends the trial back to waiting", repair)

    def _lost_run(self, record: TrialRecord) -> Iterator[Finding]:
        trials, what = self.trials, f"is {record.state}, and its run {record.run_id} is gone"
        known = trials.attrs.get(LOST_RUNS, [])
        if not record.state.is_ended:
            repair = repairing("it waits for a new one now", trials.unlink_run, record.number)
            yield Finding(Kind.LOST_RUN, record.label, what, "lets the trial wait for a new run", repair)
        elif record.number not in known:

            def note() -> str:
                trials.set_attrs(**{LOST_RUNS: sorted({*trials.attrs.get(LOST_RUNS, []), record.number})})
                return "it is noted now"

            remedy = "notes it in the trial storage, which keeps the result"
            yield Finding(Kind.LOST_RUN, record.label, what, remedy, note)

    def _unrecorded_result(self, record: TrialRecord, attempt: Attempt, outcome: TrialState) -> Finding:
        """Adopt a result whose run was closed before it was in the trial storage."""

        def repair() -> str:
            objective = attempt.objective if outcome is TrialState.COMPLETE else None
            self.runs.correct(attempt, outcome, objective, attempt.reason)
            epoch = attempt.epochs_run
            value = record.curve.get(epoch) if outcome is TrialState.PRUNED else objective
            reason = attempt.reason if outcome is TrialState.FAILED else None
            end = epoch, attempt.seconds, value, reason, attempt.cause
            self.trials.adopt_result(record.number, outcome, *end)
            return f"it is {outcome} now, as its run says"

        what = f"ended in attempt {attempt.number}, and its result is not in the trial storage"
        remedy = f"makes the trial {outcome}, as its run says"
        return Finding(Kind.UNRECORDED_RESULT, record.label, what, remedy, repair)

    def _abandoned_attempt(self, record: TrialRecord, attempt: Attempt) -> Finding:
        is_running = record.state is TrialState.RUNNING
        kept = self.checkpoints
        reached = 0 if kept is None else epoch_reached(kept, attempt.label, attempt.run_id)

        def repair() -> str:
            # The trial storage first: an open run of a trial that waits is found again; a running trial without an open
            # run would look as if no worker had begun it.
            state = self.trials.requeue(record.number, reached, cause=CAUSE) if is_running else record.state
            self.runs.interrupt_trial(attempt.trial, attempt.run_id, CAUSE, state)
            return f"it is {state} now"

        gives_up = is_running and record.counted_attempts > MAX_RETRIES and reached <= record.resumes
        remedy = f"{'gives the trial up' if gives_up else 'sends the trial back to waiting'}, ends its run"
        kind = Kind.ZOMBIE_TRIAL if is_running else Kind.ZOMBIE_RUN
        return Finding(kind, record.label, f"was interrupted in attempt {record.attempt}", remedy, repair)

    def _unlinked(self, attempts: list[Attempt]) -> Iterator[Finding]:
        """Find the runs that no trial refers to and that are not marked as superseded or as orphans."""
        current = {record.number: record.run_id for record in self.trials.records()}
        owners = set(current.values())
        for attempt in attempts:
            is_open, successor = attempt.status == "RUNNING", current.get(attempt.trial)
            if attempt.run_id in owners or attempt.is_deleted:
                continue
            if is_open and attempt.superseded_by is not None:
                yield self._open_run(attempt)  # The next attempt had begun before the end of this one was recorded.
            elif is_open or (attempt.is_current and successor is None):
                where = f"run {attempt.run_id} of {attempt.label}"
                repair = repairing(ORPHANED, self.runs.mark_orphan, attempt)
                yield Finding(Kind.ORPHAN, where, "belongs to no attempt", ORPHANS, repair)
            elif attempt.is_current:
                yield self._duplicate_current(attempt, _successor(attempt, attempts) or str(successor))

    def _duplicate_current(self, attempt: Attempt, successor: str) -> Finding:
        where, remedy = f"run {attempt.run_id} of {attempt.label}", f"marks it as superseded by {successor}"
        done = f"it is marked as superseded by {successor} now"
        repair = repairing(done, self.runs.supersede, attempt.run_id, successor)
        what = "is not the current one, and not marked as superseded"
        return Finding(Kind.DUPLICATE_CURRENT_RUN, where, what, remedy, repair)

    def _repeats(self, attempts: list[Attempt]) -> Iterator[Finding]:
        """Find what is wrong with the finalists' repeats, which are not in the trial storage."""
        by_repeat = defaultdict(list)
        for attempt in attempts:
            if attempt.status == "RUNNING" and not attempt.is_deleted:
                yield self._open_run(attempt)
            if attempt.is_current:
                by_repeat[attempt.trial, attempt.repeat].append(attempt)
        for rivals in by_repeat.values():
            *earlier, current = sorted(rivals, key=lambda one: (one.outcome is TrialState.COMPLETE, one.number))
            for attempt in earlier:
                yield self._duplicate_current(attempt, current.run_id)

    def _open_run(self, attempt: Attempt) -> Finding:
        def repair() -> str:
            if (outcome := attempt.outcome) is None:
                self.runs.interrupt_trial(attempt.trial, attempt.run_id, CAUSE, TrialState.WAITING, attempt.repeat)
                return "its run is ended now"
            self.runs.correct(attempt, outcome, attempt.objective, attempt.reason)
            return f"its run ended as {outcome}, and is closed now"

        what = f"was interrupted in attempt {attempt.number}"
        return Finding(Kind.ZOMBIE_RUN, attempt.label, what, "ends its run", repair)

    def _best(self) -> Iterator[Finding]:
        best, shown = self.trials.best(), self.runs.best_objective()
        if best is None or best.objective is None or (shown is not None and shown >= best.objective):
            return
        what = f"shows {'nothing' if shown is None else f'{shown:.4f}'} as its best objective"
        done = f"it shows {best.objective:.4f} now"
        repair = repairing(done, self.runs.log_best, self.trials.ended(), best.objective)
        yield Finding(Kind.STALE_BEST, "the study's run", what, f"logs {best.objective:.4f}", repair)


def _successor(attempt: Attempt, attempts: list[Attempt]) -> str | None:
    """Return the run of the next attempt, as the loop would have recorded it; None where there is none."""
    following = attempt.trial, attempt.number + 1
    ended = (other for other in attempts if other.status != "RUNNING" and not other.is_orphan)
    return next((other.run_id for other in ended if (other.trial, other.number) == following), None)
