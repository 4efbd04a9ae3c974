"""Optuna's storage for the one process that owns a study: its trials are read once, and written through."""

import copy
import json
from collections.abc import Container, Sequence
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from fashion_study.store.bulk_read import read_trials


class CachedStorage(BaseStorage):
    """Keep the trials of one study in memory as its database has them, so that only what changes goes there.

    Optuna's own cache asks the database each time about every trial that has not ended: another process might have
    changed it. One that only reads sees the trials as they were when it first asked. Trials that were handed out
    do not change; a change makes a new one.
    """

    def __init__(self, database: RDBStorage) -> None:
        self._database = database
        self._study_id: int | None = None
        self._trials: list[FrozenTrial] | None = None
        self._numbers: dict[int, int] = {}

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials by number."""
        held = self._held(study_id)
        trials = list(held) if states is None else [trial for trial in held if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial, not to be changed."""
        if self._trials is None:
            return self._database.get_trial(trial_id)
        return self._trials[self._numbers[trial_id]]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a trial."""
        held = self._held(study_id)
        trial_id = self._database.create_new_trial(study_id, template_trial)
        if template_trial is None:
            trial = self._database.get_trial(trial_id)
        else:
            trial = copy.copy(template_trial)
            trial.number, trial._trial_id = len(held), trial_id
            trial.user_attrs = _as_stored(trial.user_attrs)
        self._numbers[trial_id] = trial.number
        held.append(trial)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Give a trial a parameter."""
        self._database.set_trial_param(trial_id, param_name, param_value_internal, distribution)
        self._change(trial_id, "params", {param_name: distribution.to_external_repr(param_value_internal)})
        self._change(trial_id, "distributions", {param_name: distribution})

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Say where a trial stands; false where one is to be taken that does not wait."""
        if not self._database.set_trial_state_values(trial_id, state, values):
            return False
        if self._trials is not None:
            # In local time, as Optuna shows it.
            trial, now = self._replace(trial_id), datetime.now()  # noqa: DTZ005
            trial.state = state
            if values is not None:
                trial.values = values
            if state is TrialState.RUNNING:
                trial.datetime_start = now
            elif state.is_finished():
                trial.datetime_complete = now
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Keep what a trial reported at a step."""
        self._database.set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._change(trial_id, "intermediate_values", {step: float(intermediate_value)})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep an attribute of a trial."""
        self._database.set_trial_user_attr(trial_id, key, value)
        self._change(trial_id, "user_attrs", _as_stored({key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep an attribute of Optuna's own."""
        self._database.set_trial_system_attr(trial_id, key, value)
        self._change(trial_id, "system_attrs", _as_stored({key: value}))

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Pass it on."""
        return self._database.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """Pass it on."""
        self._database.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Pass it on."""
        self._database.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Pass it on."""
        self._database.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        """Pass it on."""
        return self._database.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Pass it on."""
        return self._database.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Pass it on."""
        return self._database.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Pass it on."""
        return self._database.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Pass it on."""
        return self._database.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        """Pass it on."""
        return self._database.get_all_studies()

    def _held(self, study_id: int) -> list[FrozenTrial]:
        if self._trials is None:
            self._study_id, self._trials = study_id, read_trials(self._database, study_id)
            self._numbers = {trial._trial_id: trial.number for trial in self._trials}
        if study_id != self._study_id:
            raise ValueError(f"This holds the trials of study {self._study_id}; study {study_id} needs one of its own.")
        return self._trials

    def _change(self, trial_id: int, name: str, more: dict[Any, Any]) -> None:
        """Add entries to one of a trial's dictionaries."""
        if self._trials is not None:
            trial = self._replace(trial_id)
            setattr(trial, name, getattr(trial, name) | more)

    def _replace(self, trial_id: int) -> FrozenTrial:
        """Put a copy into a trial's place, and return it to be changed."""
        assert self._trials is not None
        number = self._numbers[trial_id]
        self._trials[number] = copy.copy(self._trials[number])
        return self._trials[number]


def _as_stored(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return attributes as the database gives them back: a tuple is a list there."""
    stored: dict[str, Any] = json.loads(json.dumps(attributes))
    return stored
