"""The trial storage of trials: an Optuna study, whichever engine proposes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from fashion_study.errors import BadInputError
from fashion_study.store.cached_storage import CachedStorage
from fashion_study.store.store import Store
from fashion_study.text import did_you_mean, shown, shown_list
from fashion_study.trial import FailReason, ParamValue, TrialResult, TrialState

# A trial goes back to waiting this often; stopped from outside once more, it is given up.
MAX_RETRIES = 3

STATES = {
    OptunaState.WAITING: TrialState.WAITING,
    OptunaState.RUNNING: TrialState.RUNNING,
    OptunaState.COMPLETE: TrialState.COMPLETE,
    OptunaState.PRUNED: TrialState.PRUNED,
    OptunaState.FAIL: TrialState.FAILED,
}
# The fact that tells a study from any other.
TOKEN = "token"
# And where its runs are kept, which a trial storage that lies elsewhere cannot know otherwise.
TRACKED_AT = "tracked_at"
COUNTED = (OptunaState.COMPLETE, OptunaState.PRUNED, OptunaState.FAIL)


@dataclass(frozen=True)
class TrialRecord:
    """Show one trial of the trial storage.

    `objective` is the validation accuracy of a complete trial; `curve` maps each reported epoch (from 1) to the
    validation accuracy after it; `seconds` is how long the attempt took that ended the trial.
    """

    number: int
    state: TrialState
    params: dict[str, ParamValue]
    attempt: int
    run_id: str | None
    objective: float | None
    curve: dict[int, float] = field(default_factory=dict)
    reason: FailReason | None = None
    seconds: float | None = None
    uncounted_attempts: int = 0

    @property
    def reached(self) -> int:
        """Return the last reported epoch, 0 where there is none."""
        return max(self.curve, default=0)

    @property
    def inherited_epochs(self) -> int:
        """Count the epochs of an earlier trial that this one goes on from: its curve begins after them."""
        return min(self.curve, default=1) - 1

    @property
    def counted_attempts(self) -> int:
        """Count the attempts, the latest included, that count against the trial where they are stopped from outside."""
        return self.attempt - self.uncounted_attempts


class TrialStorage:
    """Keep trials, their attempts and the links to their runs."""

    def __init__(self, storage: BaseStorage, study_name: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._records: dict[int, tuple[FrozenTrial, TrialRecord]] = {}
        self._storage = CachedStorage(storage) if isinstance(storage, RDBStorage) else storage
        self.study = optuna.create_study(
            storage=self._storage, study_name=study_name, direction="maximize", load_if_exists=True
        )

    @property
    def name(self) -> str:
        """Return the study's name."""
        return self.study.study_name

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Return what was remembered of the study: its identity, its run, its precision."""
        return self.study.user_attrs

    @property
    def token(self) -> str:
        """Return what tells this study from any other, whatever their names."""
        if TOKEN not in self.attrs:
            self.set_attrs(**{TOKEN: uuid4().hex})
        return str(self.attrs[TOKEN])

    def set_attrs(self, **attrs: Any) -> None:
        """Keep facts (JSON values) with the study."""
        for key, value in attrs.items():
            self.study.set_user_attr(key, value)

    def counted(self) -> int:
        """Count the trials that a budget counts: complete, pruned and failed, those that were given up included."""
        return sum(trial.state in COUNTED for trial in self.trials())

    def trials(self) -> list[FrozenTrial]:
        """Return Optuna's own view of the trials, not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def trial(self, number: int) -> FrozenTrial:
        """Return Optuna's own view of one trial, not to be changed."""
        return self._storage.get_trial(self._id(number))

    def records(self) -> list[TrialRecord]:
        """Return every trial, by number."""
        return [self._record(trial) for trial in self.trials()]

    def epochs_trained(self) -> int:
        """Count the epochs that all trials have trained."""
        return sum(len(record.curve) for record in self.records())

    def best(self) -> TrialRecord | None:
        """Return the complete trial with the highest objective; the earlier one on a tie."""
        complete = (trial for trial in self.trials() if trial.state is OptunaState.COMPLETE)
        # Of equal ones max returns the first.
        best = max(complete, key=lambda trial: trial.value or 0.0, default=None)
        return None if best is None else self._record(best)

    def enqueue(self, params: Mapping[str, ParamValue], distributions: Mapping[str, BaseDistribution]) -> None:
        """Add a trial that waits to be taken."""
        self._add(OptunaState.WAITING, params, distributions)

    def add(
        self,
        params: Mapping[str, ParamValue],
        distributions: Mapping[str, BaseDistribution],
        attrs: Mapping[str, Any] | None = None,
    ) -> FrozenTrial:
        """Add a trial that runs, with an engine's own attributes; everything at once, or nothing where a kill comes."""
        self._add(OptunaState.RUNNING, params, distributions, attrs)
        return self.trials()[-1]

    def claim_waiting(self) -> FrozenTrial | None:
        """Return the first trial that waits, which runs now; None where none does."""
        waiting = next((trial for trial in self.trials() if trial.state is OptunaState.WAITING), None)
        if waiting is None:
            return None
        self._storage.set_trial_state_values(self._id(waiting.number), OptunaState.RUNNING)
        return self.trial(waiting.number)

    def begin_attempt(self, number: int, attempt: int, run_id: str) -> None:
        """Count an attempt (from 1) that a worker takes up, and name its MLflow run."""
        # The number first: a kill in between leaves a run that no trial names, and a number that never comes again.
        self._set_attr(number, "attempt", attempt)
        self._set_attr(number, "run_id", run_id)

    def record_value(self, number: int, epoch: int, value: float) -> None:
        """Keep the objective after `epoch`; a later attempt's value replaces an earlier one's."""
        self._storage.set_trial_intermediate_value(self._id(number), epoch, value)

    def record_prune(self, number: int, epoch: int) -> None:
        """Keep that the pruner ends a trial after `epoch`, whichever attempt comes there."""
        self._set_attr(number, "pruned_at", epoch)

    def release(self, number: int, *, uncounted_attempts: bool = False) -> TrialState:
        """Send a trial that was stopped from outside back to waiting; give it up after too many returns.

        With `uncounted_attempts` the store failed it, or no worker had begun with it: that return does not count.
        """
        record = self._record(self.trial(number))
        if uncounted_attempts:
            self._set_attr(number, "spared", record.uncounted_attempts + 1)
        elif record.counted_attempts > MAX_RETRIES:
            self._set_attr(number, "reason", FailReason.INTERRUPTED.value)
            self._storage.set_trial_state_values(self._id(number), OptunaState.FAIL)
            return TrialState.FAILED
        self._storage.set_trial_state_values(self._id(number), OptunaState.WAITING)
        return TrialState.WAITING

    def requeue_unstarted(self, number: int) -> None:
        """Send a proposal that no worker has begun back to waiting."""
        self._storage.set_trial_state_values(self._id(number), OptunaState.WAITING)

    def unlink_run(self, number: int) -> None:
        """Let a trial whose run is gone wait for a new one."""
        self._set_attr(number, "run_id", None)
        self.requeue_unstarted(number)

    def adopt_result(
        self,
        number: int,
        state: TrialState,
        epochs_run: int,
        seconds: float | None,
        value: float | None,
        reason: FailReason | None,
    ) -> None:
        """Record how a trial ended by what its run says, from wherever a kill has left the trial.

        `value` is the objective of a complete trial, and what a pruned one had reached.
        """
        attrs = {"epochs_run": epochs_run, "seconds": seconds, "reason": reason and reason.value}
        for key, fact in attrs.items():
            if fact is not None:
                self._set_attr(number, key, fact)
        # State and value in one transaction, from WAITING too, which `tell` would refuse.
        ended = next(theirs for theirs, ours in STATES.items() if ours is state)
        self._storage.set_trial_state_values(self._id(number), ended, None if value is None else [value])

    def close(self, result: TrialResult) -> None:
        """Record how a trial ended."""
        # Not Optuna's duration: that begins with the proposal, which waits for a free worker.
        self._set_attr(result.number, "seconds", result.seconds)
        self._set_attr(result.number, "epochs_run", result.epochs_run)
        if result.state is TrialState.COMPLETE:
            self.study.tell(result.number, result.objective)
            return
        if result.reason is not None:
            self._set_attr(result.number, "reason", result.reason.value)
        pruned = result.state is TrialState.PRUNED
        self.study.tell(result.number, state=OptunaState.PRUNED if pruned else OptunaState.FAIL)

    def _add(
        self,
        state: OptunaState,
        params: Mapping[str, ParamValue],
        distributions: Mapping[str, BaseDistribution],
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        # As the storage gives them back: a whole number stands for a float, too.
        stored = {
            name: each.to_external_repr(each.to_internal_repr(params[name])) for name, each in distributions.items()
        }
        self.study.add_trial(
            create_trial(state=state, params=stored, distributions=dict(distributions), user_attrs=dict(attrs or {}))
        )

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        """Return a trial's record, made anew where the trial has changed, which makes it another object."""
        known = self._records.get(trial.number)
        if known is None or known[0] is not trial:
            known = self._records[trial.number] = trial, _record(trial)
        return known[1]

    def _set_attr(self, number: int, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._id(number), key, value)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)


def open_study(store: Store, storage: RDBStorage, name: str | None = None) -> TrialStorage:
    """Open the trial storage of an earlier study, by default of the one that was worked on last.

    Raises:
        BadInputError: there is no study of that name, or none at all.
    """
    known = optuna.get_all_study_names(storage)
    if not known:
        raise BadInputError(f"There is no study in {store.trials_at}. Run one with python -m experiments.run_study.")
    if name is not None and name not in known:
        raise BadInputError(
            f"There is no study {shown(name)} in {store.trials_at}{did_you_mean(name, dict.fromkeys(known))}. "
            f"Expected one of: {shown_list(tuple(known))}. Name another store with --store."
        )
    return TrialStorage(storage, name or max(known, key=lambda each: _worked_on(storage, each)))


def _worked_on(storage: RDBStorage, study: str) -> datetime:
    """Return when a trial of a study last began or ended."""
    trials = optuna.load_study(study_name=study, storage=storage).get_trials(deepcopy=False)
    moments = (trial.datetime_complete or trial.datetime_start for trial in trials)
    return max((moment for moment in moments if moment is not None), default=datetime.min)  # noqa: DTZ901


def last_epoch(trial: FrozenTrial) -> float:
    """Return the epoch in which a finished trial ended, infinity of one that has not: all that it reported counts.

    What a lost attempt reported after the epoch in which the last one ended is none of the trial's.
    """
    ended: float = trial.user_attrs.get("epochs_run", math.inf) if trial.state.is_finished() else math.inf
    return ended


def _record(trial: FrozenTrial) -> TrialRecord:
    # Written before the trial's end, so that a kill in between leaves them to an attempt that ends in another way.
    end = trial.user_attrs if trial.state.is_finished() else {}
    reason = end.get("reason") if trial.state is OptunaState.FAIL else None
    last = last_epoch(trial)
    return TrialRecord(
        number=trial.number,
        state=STATES[trial.state],
        params=trial.params,
        attempt=_whole(trial.user_attrs.get("attempt")),
        run_id=trial.user_attrs.get("run_id"),
        objective=trial.value if trial.state is OptunaState.COMPLETE else None,
        curve={epoch: value for epoch, value in sorted(trial.intermediate_values.items()) if epoch <= last},
        reason=FailReason(reason) if reason else None,
        seconds=end.get("seconds"),
        uncounted_attempts=_whole(trial.user_attrs.get("spared")),
    )


def _whole(value: object) -> int:
    """Read a count that was kept; one that is missing or altered counts nothing."""
    return value if isinstance(value, int) else 0
