"""The trial storage: an Optuna study with every trial, whichever engine proposes them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any
from uuid import uuid4

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from fashion_study.store.cached_storage import CachedStorage
from fashion_study.store.ranking import Ranking
from fashion_study.trial import FailReason, ParamValue, TrialResult, TrialState

# How often a trial that was stopped from outside is tried again.
MAX_RETRIES = 3

STATES = {
    OptunaState.WAITING: TrialState.WAITING,
    OptunaState.RUNNING: TrialState.RUNNING,
    OptunaState.COMPLETE: TrialState.COMPLETE,
    OptunaState.PRUNED: TrialState.PRUNED,
    OptunaState.FAIL: TrialState.FAILED,
}
# Attributes of a study: what tells it from any other, and where its runs are.
TOKEN = "token"
TRACKED_AT = "tracked_at"
# Of a waiting trial: the epoch after which it is paused.
PAUSED_AT = "paused_at"
# How long its attempts took that ended with a pause.
PAUSED_SECONDS = "paused_seconds"


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the trial storage has it.

    `objective` is the validation accuracy of a complete trial; `curve` maps each reported epoch (from 1) to the
    validation accuracy after it; `seconds` is the duration of the attempt that ended the trial. `resumes` is the
    epoch after which the latest attempt went on, `promoted_at` that up to which it may not be paused,
    `paused_at` that after which it is paused; 0 for none.
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
    resumes: int = 0
    promoted_at: int = 0
    paused_at: int = 0
    cause: str = ""

    @property
    def label(self) -> str:
        """Return its name: `trial 007`."""
        return f"trial {self.number:03d}"

    @property
    def reached(self) -> int:
        """Return the last reported epoch, 0 where there is none."""
        return max(self.curve, default=0)

    @property
    def value(self) -> float | None:
        """Return the objective; of a trial that is not complete, the last reported value."""
        return self.curve.get(self.reached) if self.objective is None else self.objective

    @cached_property
    def best_until(self) -> dict[int, float]:
        """Return the highest value so far after each reported epoch."""
        return dict(zip(self.curve, accumulate(self.curve.values(), max), strict=True))

    @property
    def inherited_epochs(self) -> int:
        """Count the epochs of an earlier trial that this one continues: its curve begins after them."""
        return min(self.curve, default=1) - 1

    @property
    def counted_attempts(self) -> int:
        """Count the attempts, the latest included, that use up the trial's retries."""
        return self.attempt - self.uncounted_attempts


# What a trial is ranked by, None for one that is left out.
Key = Callable[[TrialRecord], Any]


class TrialStorage:
    """The trials of a study, their attempts and the links to their runs, in an Optuna study of any engine's."""

    def __init__(self, storage: BaseStorage, study_name: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._records: dict[int, tuple[FrozenTrial, TrialRecord]] = {}
        self._storage = CachedStorage(storage) if isinstance(storage, RDBStorage) else storage
        self.study = optuna.create_study(
            storage=self._storage, study_name=study_name, direction="maximize", load_if_exists=True
        )
        # What is asked for with every trial: a walk over all the others would take longer the more there are.
        self._rankings: list[Ranking[TrialRecord]] = []
        self._waiting = self.ranked(lambda record: record.number if record.state is TrialState.WAITING else None)
        self._counted = self.ranked(lambda record: record.number if record.state.is_counted else None)
        self._ended = self.ranked(lambda record: record.number if record.state.is_ended else None)
        self._complete = self.ranked(
            lambda record: (record.objective or 0.0, -record.number) if record.state is TrialState.COMPLETE else None
        )

    @property
    def name(self) -> str:
        """Return the study's name."""
        return self.study.study_name

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Return the study's attributes: its fingerprint, its run, its precision."""
        return self.study.user_attrs

    @property
    def token(self) -> str:
        """Return what tells this study from any other, whatever their names."""
        if TOKEN not in self.attrs:
            self.set_attrs(**{TOKEN: uuid4().hex})
        return str(self.attrs[TOKEN])

    @property
    def next_number(self) -> int:
        """Return the number of the next trial."""
        return self._storage.get_n_trials(self.study._study_id)

    @property
    def original(self) -> str | None:
        """Return the study that another program has copied this one from, None where this is no copy."""
        earlier = (each for each in self._storage.get_all_studies() if each._study_id < self.study._study_id)
        token = self.attrs.get(TOKEN, "")
        return next((each.study_name for each in earlier if each.user_attrs.get(TOKEN) == token), None)

    def of_other_programs(self) -> Iterator[str]:
        """Describe the trials that other programs have ended, copied or enqueued, if there are any."""
        trials = self.trials()
        left_out = {*range(self.next_number)} - {trial.number for trial in trials}
        names = trials[0].distributions.keys() if trials else ()
        enqueued = {t.number for t in trials if t.state is OptunaState.WAITING and t.distributions.keys() != names}
        for found, numbers in (("not counted", left_out), ("enqueued", enqueued)):
            if numbers:
                yield f"trials of other programs, {found}: {', '.join(f'{number:03d}' for number in sorted(numbers))}"

    def set_attrs(self, **attrs: Any) -> None:
        """Set attributes (JSON values) of the study."""
        for key, value in attrs.items():
            self.study.set_user_attr(key, value)

    def counted(self) -> int:
        """Count the trials that a budget counts: complete, pruned, failed and paused."""
        return len(self._counted())

    def ended(self) -> int:
        """Count the trials that are trained no more."""
        return len(self._ended())

    def trials(self) -> list[FrozenTrial]:
        """Return the trials as Optuna has them, not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def trial(self, number: int) -> FrozenTrial:
        """Return a trial as Optuna has it, not to be changed."""
        return self._storage.get_trial(self._id(number))

    def records(self) -> list[TrialRecord]:
        """Return every trial, by number."""
        return [record for _, record in self._current().values()]

    def record(self, number: int) -> TrialRecord:
        """Return a trial."""
        return self._current()[number][1]

    def ranked(self, key: Key) -> Callable[[], Sequence[Any]]:
        """Return what returns the keys of all trials that have one, in rising order; no two may have the same.

        Only the trials that have changed since are looked at: a call takes as long for any number of trials.
        """
        ranking = Ranking(key, {number: record for number, (_, record) in self._records.items()})
        self._rankings.append(ranking)

        def keys() -> Sequence[Any]:
            self._current()
            return ranking.keys

        return keys

    def epochs_trained(self) -> int:
        """Count the epochs that all trials have trained."""
        return sum(len(record.curve) for record in self.records())

    def best(self) -> TrialRecord | None:
        """Return the complete trial with the highest objective; the earlier one on a tie."""
        complete = self._complete()
        return self.record(-complete[-1][1]) if complete else None

    def add(
        self,
        params: Mapping[str, ParamValue],
        distributions: Mapping[str, BaseDistribution],
        attrs: Mapping[str, Any] | None = None,
        state: OptunaState = OptunaState.RUNNING,
    ) -> FrozenTrial:
        """Add a trial with an engine's own attributes, by default a running one, in one transaction."""
        # As the storage returns them: a float may be given as a whole number.
        stored = {
            name: each.to_external_repr(each.to_internal_repr(params[name])) for name, each in distributions.items()
        }
        trial = create_trial(
            state=state, params=stored, distributions=dict(distributions), user_attrs=dict(attrs or {})
        )
        return self._storage.get_trial(self._storage.create_new_trial(self.study._study_id, trial))

    def claim_waiting(self, *, is_begun: bool = False) -> FrozenTrial | None:
        """Set the first waiting trial running and return it, of those that were `is_begun` before where that is asked.

        A paused trial does not count as waiting. None where there is none.
        """
        waiting = self._waiting()
        first = next((each for each in waiting if not is_begun or "attempt" in self.trial(each).user_attrs), None)
        if first is None:
            return None
        self._set_state(first, OptunaState.RUNNING)
        return self.trial(first)

    def pause(self, number: int, epoch: int, seconds: float = 0.0) -> None:
        """Let a running trial wait after an epoch, which took so many `seconds`, until it may go on.

        Its attempts until then do not count as stops from outside.
        """
        record = self.record(number)
        self._set_attr(number, "spared", record.attempt)
        self._set_attr(number, PAUSED_SECONDS, (record.seconds or 0.0) + seconds)
        self._set_attr(number, PAUSED_AT, epoch)
        self._set_state(number, OptunaState.WAITING)

    def promote(self, number: int, epoch: int) -> FrozenTrial:
        """Set a paused trial running that may go on after an epoch, and return it.

        Until an attempt is begun it is paused again where it is requeued.
        """
        self._set_attr(number, "promoted_at", epoch)
        self._set_state(number, OptunaState.RUNNING)
        return self.trial(number)

    def complete(
        self, number: int, point: Mapping[str, ParamValue], distributions: Mapping[str, BaseDistribution]
    ) -> FrozenTrial:
        """Give a trial that another program has enqueued the parameters that it lacks, and return it."""
        known = self.trial(number).params
        for name, each in distributions.items():
            if name not in known:
                self._storage.set_trial_param(self._id(number), name, each.to_internal_repr(point[name]), each)
        return self.trial(number)

    def put_aside(self, number: int, why: str) -> None:
        """End a trial that cannot be trained; it counts no more."""
        self._set_attr(number, "put_aside", why)
        self._set_state(number, OptunaState.FAIL)

    def begin_attempt(self, number: int, attempt: int, run_id: str, resumes: int = 0) -> None:
        """Record an attempt (from 1) of a worker, its MLflow run, and the epoch after which it goes on."""
        attrs = self.trial(number).user_attrs
        # The number first: a kill in between leaves a run that no trial names, and a number that never comes again.
        self._set_attr(number, "attempt", attempt)
        if attrs.get("resumes", 0) != resumes:
            self._set_attr(number, "resumes", resumes)
        if attrs.get(PAUSED_AT) is not None:
            self._set_attr(number, PAUSED_AT, None)
        self._set_attr(number, "run_id", run_id)

    def record_value(self, number: int, epoch: int, value: float) -> None:
        """Record the objective after `epoch`; a later attempt's value replaces an earlier one's."""
        self._storage.set_trial_intermediate_value(self._id(number), epoch, value)

    def record_prune(self, number: int, epoch: int) -> None:
        """Record that the trial is pruned after `epoch`, in whichever attempt."""
        self._set_attr(number, "pruned_at", epoch)

    def requeue(self, number: int, reached: int = 0, *, counted: bool = True, cause: str = "") -> TrialState:
        """Let a trial that was stopped from outside wait again; fail it where it has used up its retries.

        An attempt that the store failed, or that no worker began, is not `counted` against the trial. One that has
        `reached` a later epoch than that after which it began, and can go on from there, gives it all its retries back.
        """
        record = self.record(number)
        if reached > record.resumes:
            self._set_attr(number, "spared", record.attempt)
        elif not counted:
            self._set_attr(number, "spared", record.uncounted_attempts + 1)
        elif record.counted_attempts > MAX_RETRIES:
            self._set_attr(number, "reason", FailReason.INTERRUPTED.value)
            self._set_attr(number, "cause", cause)
            self._set_state(number, OptunaState.FAIL)
            return TrialState.FAILED
        self._set_state(number, OptunaState.WAITING)
        return TrialState.WAITING

    def requeue_unstarted(self, number: int) -> None:
        """Let a trial wait again of which no worker has begun an attempt."""
        self._set_state(number, OptunaState.WAITING)

    def unlink_run(self, number: int) -> None:
        """Let a trial whose run is gone wait for a new one."""
        self._set_attr(number, "run_id", None)
        self._set_state(number, OptunaState.WAITING)

    def adopt_result(
        self,
        number: int,
        state: TrialState,
        epochs_run: int,
        seconds: float | None,
        value: float | None,
        reason: FailReason | None,
        cause: str = "",
    ) -> None:
        """Record how a trial ended, whether it is running or was left waiting by a kill.

        `value` is the objective of a complete trial, and the last value of a pruned one. `seconds` is not Optuna's
        duration, which begins with the proposal.
        """
        why = {"reason": reason.value, "cause": cause} if reason else {}
        attrs = {"seconds": seconds, "epochs_run": epochs_run, **why}
        for key, attr in attrs.items():
            if attr is not None:
                self._set_attr(number, key, attr)
        ended = next(theirs for theirs, ours in STATES.items() if ours is state)
        self._set_state(number, ended, None if value is None else [value])

    def close(self, result: TrialResult) -> None:
        """Record how a running trial ended."""
        value = result.objective
        if result.state is TrialState.PRUNED:
            trial = self.trial(result.number)
            value = None if trial.last_step is None else trial.intermediate_values[trial.last_step]
        seconds = self.trial(result.number).user_attrs.get(PAUSED_SECONDS, 0.0) + result.seconds
        end = result.epochs_run, seconds, value, result.reason, result.cause
        self.adopt_result(result.number, result.state, *end)

    def _current(self) -> dict[int, tuple[FrozenTrial, TrialRecord]]:
        """Return every trial with its record, by number, after a look at those that have changed.

        A change makes another object of a trial.
        """
        storage = self._storage
        changed: Iterable[tuple[int, FrozenTrial | None]]
        if isinstance(storage, CachedStorage):
            changed = storage.take_changed(self.study._study_id)
        else:
            changed = ((trial.number, trial) for trial in self.trials())
        for number, trial in changed:
            if trial is None:
                self._records.pop(number, None)
            elif number not in self._records or self._records[number][0] is not trial:
                self._records[number] = trial, _record(trial)
            else:
                continue
            for ranking in self._rankings:
                ranking.update(number, None if trial is None else self._records[number][1])
        return self._records

    def _set_attr(self, number: int, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._id(number), key, value)

    def _set_state(self, number: int, state: OptunaState, values: list[float] | None = None) -> None:
        self._storage.set_trial_state_values(self._id(number), state, values)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)


def last_epoch(trial: FrozenTrial) -> float:
    """Return the epoch in which a finished trial ended, infinity for any other.

    A lost attempt may have reported later epochs than the one that ended the trial.
    """
    ended: float = trial.user_attrs.get("epochs_run", math.inf) if trial.state.is_finished() else math.inf
    return ended


def _is_paused(trial: FrozenTrial) -> bool:
    return trial.state is OptunaState.WAITING and trial.user_attrs.get(PAUSED_AT) is not None


def _record(trial: FrozenTrial) -> TrialRecord:
    # A trial's end is written before its state: after a kill in between another attempt may end it in another way.
    end = trial.user_attrs if trial.state.is_finished() else {}
    reason = end.get("reason") if trial.state is OptunaState.FAIL else None
    last = last_epoch(trial)
    return TrialRecord(
        number=trial.number,
        state=TrialState.PAUSED if _is_paused(trial) else STATES[trial.state],
        params=trial.params,
        attempt=_whole(trial.user_attrs.get("attempt")),
        run_id=trial.user_attrs.get("run_id"),
        objective=trial.value if trial.state is OptunaState.COMPLETE else None,
        curve={epoch: value for epoch, value in sorted(trial.intermediate_values.items()) if epoch <= last},
        reason=FailReason(reason) if reason else None,
        seconds=end.get("seconds", trial.user_attrs.get(PAUSED_SECONDS)),
        uncounted_attempts=_whole(trial.user_attrs.get("spared")),
        resumes=_whole(trial.user_attrs.get("resumes")),
        promoted_at=_whole(trial.user_attrs.get("promoted_at")),
        paused_at=_whole(trial.user_attrs.get(PAUSED_AT)),
        cause=str(end.get("cause", "")) if reason else "",
    )


def _whole(value: object) -> int:
    """Return a stored count, 0 for one that is missing or altered."""
    return value if isinstance(value, int) else 0
