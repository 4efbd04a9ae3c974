"""The leaderboard of a study: its trials, the best first, and as a table."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fashion_study.store.trials import TrialRecord
from fashion_study.trial import TrialState

if TYPE_CHECKING:
    import pandas as pd

# Of the states in a ranking.
ORDER = (
    TrialState.COMPLETE,
    TrialState.PAUSED,
    TrialState.PRUNED,
    TrialState.RUNNING,
    TrialState.WAITING,
    TrialState.FAILED,
)


def rank(records: Iterable[TrialRecord]) -> tuple[TrialRecord, ...]:
    """Sort trials: complete ones by objective, then paused and pruned ones by how far and how well they went."""

    def key(record: TrialRecord) -> tuple[float, ...]:
        reached = record.reached if record.objective is None else 0
        return ORDER.index(record.state), -reached, -(record.value or 0.0), record.number

    return tuple(sorted(records, key=key))


def table(ranked: Sequence[TrialRecord]) -> "pd.DataFrame":
    """Turn ranked trials into a table, one row each, the hyperparameters as columns of their own."""
    import pandas as pd

    names = dict.fromkeys(name for record in ranked for name in record.params)
    columns = {
        "rank": range(1, len(ranked) + 1),
        "trial": [record.number for record in ranked],
        "state": [str(record.reason or record.state) for record in ranked],
        "objective": [record.objective for record in ranked],
        **{name: [record.params.get(name) for record in ranked] for name in names},
        "epochs_run": [record.reached for record in ranked],
        "seconds": [None if record.seconds is None else round(record.seconds, 1) for record in ranked],
        "run_id": [record.run_id for record in ranked],
    }
    return pd.DataFrame(columns)
