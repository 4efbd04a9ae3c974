"""The ranked trials of a study."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fashion_study.engines.ledger import TrialRecord
from fashion_study.trial import TrialState

if TYPE_CHECKING:
    import pandas as pd

ORDER = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.RUNNING,
    TrialState.WAITING,
    TrialState.FAILED,
)


def rank(records: Iterable[TrialRecord]) -> tuple[TrialRecord, ...]:
    """Sort trials: complete ones by objective, then pruned ones by how far and how well they went, then the rest."""
    return tuple(sorted(records, key=_rank))


def table(ranked: Sequence[TrialRecord]) -> "pd.DataFrame":
    """Turn ranked trials into a table, one row each, the hyperparameters as columns of their own."""
    import pandas as pd

    rows = [
        {
            "rank": place,
            "trial": record.number,
            "state": record.state.value if record.reason is None else record.reason.value,
            "objective": record.objective,
            **record.params,
            "epochs_run": len(record.curve),
            "seconds": None if record.seconds is None else round(record.seconds, 1),
            "run_id": record.run_id,
        }
        for place, record in enumerate(ranked, start=1)
    ]
    return pd.DataFrame(rows)


def _rank(record: TrialRecord) -> tuple[float, ...]:
    last = record.curve[max(record.curve)] if record.curve else 0.0
    value = record.objective if record.objective is not None else last
    epochs = 0 if record.state is TrialState.COMPLETE else -len(record.curve)
    return ORDER.index(record.state), epochs, -value, record.number
