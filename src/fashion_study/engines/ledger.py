"""The ledger of trials: an Optuna study, whichever engine proposes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from fashion_study.trial import FailReason, ParamValue, TrialResult, TrialState

# A trial goes back to waiting this often; stopped from outside once more, it is given up.
MAX_RETURNS = 3

STATES = {
    OptunaState.WAITING: TrialState.WAITING,
    OptunaState.RUNNING: TrialState.RUNNING,
    OptunaState.COMPLETE: TrialState.COMPLETE,
    OptunaState.PRUNED: TrialState.PRUNED,
    OptunaState.FAIL: TrialState.FAILED,
}
COUNTED = (OptunaState.COMPLETE, OptunaState.PRUNED, OptunaState.FAIL)


@dataclass(frozen=True)
class TrialRecord:
    """Show one trial of the ledger.

    `objective` is the validation accuracy of a complete trial; `curve` maps each reported epoch (from 1) to the
    validation accuracy after it; `seconds` runs from the opening of the trial's run to its end.
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


class Ledger:
    """Keep trials, their attempts and the links to their runs."""

    def __init__(self, storage: BaseStorage, study_name: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            storage=storage, study_name=study_name, direction="maximize", load_if_exists=True
        )
        self._storage = storage
        self._begun: dict[int, float] = {}

    @property
    def name(self) -> str:
        """Return the study's name."""
        return self.study.study_name

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return what was remembered of the study: its identity, its run, its precision."""
        return self.study.user_attrs

    def remember(self, **facts: Any) -> None:
        """Keep facts (JSON values) with the study."""
        for key, value in facts.items():
            self.study.set_user_attr(key, value)

    def counted(self) -> int:
        """Count the trials that a budget counts: complete, pruned, and failed by their own fault."""
        return sum(trial.state in COUNTED for trial in self.trials())

    def has_waiting(self) -> bool:
        """Say whether a trial waits to be proposed, for the first time or again."""
        return any(trial.state is OptunaState.WAITING for trial in self.trials())

    def trials(self) -> list[FrozenTrial]:
        """Return Optuna's own view of the trials, not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def trial(self, number: int) -> FrozenTrial:
        """Return Optuna's own view of one trial, not to be changed."""
        return self._storage.get_trial(self._id(number))

    def records(self) -> list[TrialRecord]:
        """Return every trial, by number."""
        return [_record(trial) for trial in self.trials()]

    def best(self) -> TrialRecord | None:
        """Return the complete trial with the highest objective; the earlier one on a tie."""
        complete = [record for record in self.records() if record.objective is not None]
        return max(complete, key=lambda record: (record.objective, -record.number), default=None)

    def enqueue(self, params: Mapping[str, ParamValue]) -> None:
        """Let the next proposal be `params`, unless the study has them already."""
        self.study.enqueue_trial(dict(params), skip_if_exists=True)

    def begin_attempt(self, number: int, attempt: int, run_id: str) -> None:
        """Count an attempt (from 1) that a worker takes up, and name its MLflow run."""
        self._begun[number] = time.monotonic()
        self._set_attr(number, "run_id", run_id)
        self._set_attr(number, "attempt", attempt)

    def record_value(self, number: int, epoch: int, value: float) -> None:
        """Keep the objective after `epoch`; a later attempt's value replaces an earlier one's."""
        self._storage.set_trial_intermediate_value(self._id(number), epoch, value)

    def record_verdict(self, number: int, epoch: int) -> None:
        """Keep that the pruner ends a trial after `epoch`, whichever attempt comes there."""
        self._set_attr(number, "pruned_at", epoch)

    def release(self, number: int) -> TrialState:
        """Send a trial that was stopped from outside back to waiting; give it up after too many returns."""
        if int(self.trial(number).user_attrs.get("attempt", 0)) > MAX_RETURNS:
            self._set_attr(number, "reason", FailReason.INTERRUPTED.value)
            self._storage.set_trial_state_values(self._id(number), OptunaState.FAIL)
            return TrialState.FAILED
        self._storage.set_trial_state_values(self._id(number), OptunaState.WAITING)
        return TrialState.WAITING

    def withdraw(self, number: int) -> None:
        """Send a proposal that no worker has begun back to waiting."""
        self._storage.set_trial_state_values(self._id(number), OptunaState.WAITING)

    def close(self, result: TrialResult) -> None:
        """Record how a trial ended."""
        # Not Optuna's duration: that begins with the proposal, which waits for a free worker.
        self._set_attr(result.number, "seconds", time.monotonic() - self._begun.pop(result.number))
        if result.state is TrialState.COMPLETE:
            self.study.tell(result.number, result.objective)
            return
        if result.reason is not None:
            self._set_attr(result.number, "reason", result.reason.value)
        pruned = result.state is TrialState.PRUNED
        self.study.tell(result.number, state=OptunaState.PRUNED if pruned else OptunaState.FAIL)

    def _set_attr(self, number: int, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._id(number), key, value)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)


def _record(trial: FrozenTrial) -> TrialRecord:
    reason = trial.user_attrs.get("reason")
    return TrialRecord(
        number=trial.number,
        state=STATES[trial.state],
        # An enqueued point has its values there until it is begun.
        params={**trial.system_attrs.get("fixed_params", {}), **trial.params},
        attempt=int(trial.user_attrs.get("attempt", 0)),
        run_id=trial.user_attrs.get("run_id"),
        objective=trial.value if trial.state is OptunaState.COMPLETE else None,
        curve=dict(sorted(trial.intermediate_values.items())),
        reason=FailReason(reason) if reason else None,
        seconds=trial.user_attrs.get("seconds"),
    )
