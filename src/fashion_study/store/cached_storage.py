"""A write-through cache of a study's trials over Optuna's database, for the one process that owns the study."""

import copy
import json
import math
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from datetime import datetime
from functools import cache, partial
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import func, inspect, select
from sqlalchemy.orm import Session

ROWS_AT_ONCE = 10_000
Trials = dict[int, FrozenTrial]


class CachedStorage(_CachedStorage):
    """A storage whose trials of one study are read once; from then on every change goes to the database and here.

    Optuna's own cache, whose other methods are kept, asks the database each time about every trial that has not
    ended: another process might have changed it. Trials that were returned do not change; a change makes a new one.
    Trials that another program has ended or copied are left out, so that they decide nothing.
    """

    _backend: RDBStorage

    def __init__(self, database: RDBStorage) -> None:
        super().__init__(database)
        # By their ids, in the order of their numbers.
        self._trials: Trials = {}
        # By their numbers, those included that are left out.
        self._ids: dict[int, int] = {}
        # The numbers of those that nobody has asked for since they changed.
        self._changed: set[int] = set()

    def take_changed(self, study_id: int) -> list[tuple[int, FrozenTrial | None]]:
        """Return the trials, by number, that are new or have changed since the last call, None for one left out."""
        trials = self._read(study_id)
        changed = [(number, trials.get(self._ids[number])) for number in sorted(self._changed)]
        self._changed.clear()
        return changed

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials by number."""
        trials = list(self._read(study_id).values())
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial, not to be changed."""
        return self._trials[trial_id]

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Return the id of a trial."""
        self._read(study_id)
        return self._ids[trial_number]

    def get_n_trials(self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None) -> int:
        """Return the number of trials; without a `state`, those included that are left out."""
        self._read(study_id)
        return super().get_n_trials(study_id, state) if state is not None else len(self._ids)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a trial."""
        trials = self._read(study_id)
        trial = self._backend._create_new_trial(study_id, template_trial)
        if trial.number > len(self._ids):
            # Another program has added trials in the meantime.
            trials = self._load(study_id, trial.number)
        trial.user_attrs = _as_stored(trial.user_attrs)
        if template_trial is not None:
            trial.distributions = template_trial.distributions  # In memory once.
        trials[trial._trial_id] = trial
        self._ids[trial.number] = trial._trial_id
        self._changed.add(trial.number)
        return trial._trial_id

    def set_trial_param(self, trial_id: int, name: str, internal: float, distribution: BaseDistribution) -> None:
        """Set a parameter that a trial does not have yet."""
        self._write(self._backend.set_trial_param, trial_id, name, internal, distribution)
        self._add(trial_id, "distributions", {name: distribution})
        self._add(trial_id, "params", {name: distribution.to_external_repr(internal)})

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state of a trial; return False where a trial is to be claimed that is not waiting."""
        if not self._write(self._backend.set_trial_state_values, trial_id, state, values):
            return False
        # In local time, as Optuna shows it.
        trial, now = self._replace(trial_id), datetime.now()  # noqa: DTZ005
        trial.state = state
        if values is not None:
            trial.values = values
        if state is TrialState.RUNNING:
            trial.datetime_start = now
        elif state.is_finished():
            trial.datetime_complete = now
        if _is_of_another_program(trial):
            del self._trials[trial_id]
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set what a trial reported at a step."""
        self._write(self._backend.set_trial_intermediate_value, trial_id, step, intermediate_value)
        self._add(trial_id, "intermediate_values", {step: float(intermediate_value)})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of a trial."""
        self._write(self._backend.set_trial_user_attr, trial_id, key, value)
        self._add(trial_id, "user_attrs", _as_stored({key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of Optuna's own."""
        self._write(self._backend.set_trial_system_attr, trial_id, key, value)
        self._add(trial_id, "system_attrs", _as_stored({key: value}))

    def _read(self, study_id: int) -> Trials:
        return self._trials or self._load(study_id)

    def _load(self, study_id: int, below: float = math.inf) -> Trials:
        """Read the trials whose numbers are below `below`; those that are here already stay as they are."""
        found = {key: one for key, one in _read_trials(self._backend, study_id).items() if one.number < below}
        self._ids = {trial.number: trial_id for trial_id, trial in found.items()}
        self._changed.update(self._ids)
        known = {trial_id: self._trials.get(trial_id, trial) for trial_id, trial in found.items()}
        copied = _copies(self._backend, known)
        self._trials = {key: one for key, one in known.items() if key not in copied and not _is_of_another_program(one)}
        return self._trials

    def _write(self, write: Callable[..., Any], trial_id: int, *values: Any) -> Any:
        try:
            return write(trial_id, *values)
        except UpdateFinishedTrialError:
            if self._trials[trial_id].state.is_finished():
                raise
        # Another program has ended a trial that this process is working on: it is as it was before.
        with Session(self._backend.engine) as session, session.begin():
            session.query(models.TrialValueModel).filter_by(trial_id=trial_id).delete()
            session.get_one(models.TrialModel, trial_id).state = self._trials[trial_id].state
        return write(trial_id, *values)

    def _add(self, trial_id: int, name: str, entries: dict[Any, Any]) -> None:
        """Add entries to one of a trial's dictionaries."""
        trial = self._replace(trial_id)
        setattr(trial, name, getattr(trial, name) | entries)

    def _replace(self, trial_id: int) -> FrozenTrial:
        """Put a copy into a trial's place, and return it to be changed."""
        trial = self._trials[trial_id] = copy.copy(self._trials[trial_id])
        self._changed.add(trial.number)
        return trial


def _is_of_another_program(trial: FrozenTrial) -> bool:
    """Return whether another program has ended a trial: it lacks what is written before the end of every other one."""
    return trial.state.is_finished() and not {"epochs_run", "reason"} & trial.user_attrs.keys()


def _copies(database: RDBStorage, trials: Trials) -> set[int]:
    """Return the trials that name the run of an earlier one of any study: another program has copied its attributes."""
    attr = models.TrialUserAttributeModel
    runs = select(attr.value_json, func.min(attr.trial_id)).where(attr.key == "run_id", attr.value_json != "null")
    with Session(database.engine) as session:
        first = dict(session.execute(runs.group_by(attr.value_json).having(func.count() > 1)).all())
    named = ((trial_id, json.dumps(trial.user_attrs.get("run_id"))) for trial_id, trial in trials.items())
    return {trial_id for trial_id, run in named if first.get(run, trial_id) != trial_id}


def _as_stored(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return attributes as the database returns them: a tuple is a list there."""
    stored: dict[str, Any] = json.loads(json.dumps(attributes))
    return stored


def _read_trials(database: RDBStorage, study_id: int) -> Trials:
    """Return what `database.get_all_trials` returns, by trial id, in a sixth of its time and a fifth of its memory.

    Optuna makes an object of each row. Here distributions and names that trials have in common are in memory once.
    """
    trials: Trials = {}
    shared: dict[tuple[tuple[str, int], ...], dict[str, BaseDistribution]] = {}
    parse = cache(json_to_distribution)
    param, value, step = models.TrialParamModel, models.TrialValueModel, models.TrialIntermediateValueModel
    with Session(database.engine) as session:
        row: Any
        for row in session.scalars(select(models.TrialModel).filter_by(study_id=study_id).order_by("number")):
            times = row.datetime_start, row.datetime_complete
            trials[row.trial_id] = FrozenTrial(row.number, row.state, None, *times, {}, {}, {}, {}, {}, row.trial_id)
        rows = partial(_rows, session, study_id, trials)
        for trial, name, number, distribution in rows(param.param_name, param.param_value, param.distribution_json):
            trial.distributions[sys.intern(name)] = parse(distribution)
            trial.params[sys.intern(name)] = parse(distribution).to_external_repr(number)
        for trial, *stored in rows(value.value, value.value_type):
            # A study of this project has one objective.
            trial.values = [value.stored_repr_to_value(*stored)]
        for trial, number, *stored in rows(step.step, step.intermediate_value, step.intermediate_value_type):
            trial.intermediate_values[number] = step.stored_repr_to_intermediate_value(*stored)
        for trial, key, text in rows(models.TrialUserAttributeModel.key, models.TrialUserAttributeModel.value_json):
            trial.user_attrs[sys.intern(key)] = json.loads(text)
        for trial, key, text in rows(models.TrialSystemAttributeModel.key, models.TrialSystemAttributeModel.value_json):
            trial.system_attrs[sys.intern(key)] = json.loads(text)
    for trial in trials.values():
        names = tuple((name, id(distribution)) for name, distribution in trial.distributions.items())
        trial.distributions = shared.setdefault(names, trial.distributions)
    return trials


def _rows(session: Session, study_id: int, trials: Trials, *columns: Any) -> Iterator[Any]:
    """Yield columns of a table's rows, in the order in which they were written, each with its trial."""
    table = columns[0].class_
    query = select(table.trial_id, *columns).join(models.TrialModel).filter_by(study_id=study_id)
    ordered = query.order_by(*inspect(table).primary_key).execution_options(yield_per=ROWS_AT_ONCE)
    # Another process may have added trials since.
    return ((trials[trial_id], *row) for trial_id, *row in session.execute(ordered) if trial_id in trials)
