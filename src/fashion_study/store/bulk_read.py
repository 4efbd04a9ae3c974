"""All trials of a study, read row by row: Optuna makes an object of each row, which takes ten times as long."""

import json
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import (
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.trial import FrozenTrial
from sqlalchemy import Connection, select

ROWS_AT_ONCE = 10_000
Trials = dict[int, FrozenTrial]


def read_trials(storage: RDBStorage, study_id: int) -> list[FrozenTrial]:
    """Return the trials of a study by number, equal to what `storage.get_all_trials` returns.

    Whatever many trials have in common, their distributions and the names of what they keep, is in memory once.
    """
    with storage.engine.connect() as connection:
        trials = _empty_trials(connection, study_id)
        _read_params(connection, study_id, trials)
        _read_values(connection, study_id, trials)
        _read_attributes(connection, study_id, trials)
    return list(trials.values())


def _empty_trials(connection: Connection, study_id: int) -> Trials:
    columns = (
        TrialModel.trial_id,
        TrialModel.number,
        TrialModel.state,
        TrialModel._datetime_start_utc,
        TrialModel._datetime_complete_utc,
    )
    query = select(*columns).where(TrialModel.study_id == study_id).order_by(TrialModel.number)
    return {
        trial_id: FrozenTrial(
            number=number,
            trial_id=trial_id,
            state=state,
            value=None,
            datetime_start=_local(started),
            datetime_complete=_local(completed),
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        for trial_id, number, state, started, completed in connection.execute(query)
    }


def _read_params(connection: Connection, study_id: int, trials: Trials) -> None:
    columns = TrialParamModel.param_name, TrialParamModel.param_value, TrialParamModel.distribution_json
    parse = cache(json_to_distribution)
    for trial, name, value, text in _rows(connection, study_id, trials, TrialParamModel.param_id, *columns):
        distribution = parse(text)
        trial.distributions[sys.intern(name)] = distribution
        trial.params[sys.intern(name)] = distribution.to_external_repr(value)
    known: dict[tuple[tuple[str, int], ...], dict[str, BaseDistribution]] = {}
    for trial in trials.values():
        same = tuple((name, id(distribution)) for name, distribution in trial.distributions.items())
        trial.distributions = known.setdefault(same, trial.distributions)


def _read_values(connection: Connection, study_id: int, trials: Trials) -> None:
    final, reported = TrialValueModel, TrialIntermediateValueModel
    columns: tuple[Any, ...] = final.value, final.value_type
    # A study of ours has one objective.
    for trial, *stored in _rows(connection, study_id, trials, final.trial_value_id, *columns):
        trial.values = [final.stored_repr_to_value(*stored)]
    columns = reported.step, reported.intermediate_value, reported.intermediate_value_type
    for trial, step, *stored in _rows(connection, study_id, trials, reported.trial_intermediate_value_id, *columns):
        trial.intermediate_values[step] = reported.stored_repr_to_intermediate_value(*stored)


def _read_attributes(connection: Connection, study_id: int, trials: Trials) -> None:
    user, system = TrialUserAttributeModel, TrialSystemAttributeModel
    for trial, key, text in _rows(
        connection, study_id, trials, user.trial_user_attribute_id, user.key, user.value_json
    ):
        trial.user_attrs[sys.intern(key)] = json.loads(text)
    for trial, key, text in _rows(
        connection, study_id, trials, system.trial_system_attribute_id, system.key, system.value_json
    ):
        trial.system_attrs[sys.intern(key)] = json.loads(text)


def _rows(connection: Connection, study_id: int, trials: Trials, key: Any, *columns: Any) -> Iterator[Iterable[Any]]:
    """Yield the rows of a table in the order in which they came in, each with its trial."""
    table = key.class_
    query = (
        select(table.trial_id, *columns)
        .join(TrialModel, TrialModel.trial_id == table.trial_id)
        .where(TrialModel.study_id == study_id)
        .order_by(key)
    )
    for trial_id, *row in connection.execution_options(yield_per=ROWS_AT_ONCE).execute(query):
        # Another process may have added trials since.
        if trial_id in trials:
            yield trials[trial_id], *row


def _local(moment: datetime | None) -> datetime | None:
    """Turn a moment as Optuna stores it, in UTC, into one as it shows it."""
    return None if moment is None else moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
