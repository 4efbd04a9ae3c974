"""A store grown in seconds: toy trials that the coordinator ran, copied row by row under other numbers and values."""

import math
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

# Tables whose rows belong to a run or a trial, with the column that names it and the one that counts rows.
OF_A_RUN = ("params", "tags", "metrics", "latest_metrics")
OF_A_TRIAL = {
    "trial_user_attributes": "trial_user_attribute_id",
    "trial_system_attributes": "trial_system_attribute_id",
    "trial_params": "param_id",
    "trial_values": "trial_value_id",
    "trial_intermediate_values": "trial_intermediate_value_id",
}
BATCH = 1000
Row = dict[str, Any]


def grow(store: Path, size: int, seed: int = 0) -> None:
    """Copy the trials and runs of a store's only study until it has `size` trials."""
    with _opened(store / "optuna.db") as database:
        trials = _rows(database, "SELECT * FROM trials ORDER BY number")
        finished = [trial for trial in trials if trial["state"] in ("COMPLETE", "PRUNED")]
        run_ids = {trial["trial_id"]: _run_of(database, trial["trial_id"]) for trial in finished}
        copies = [
            (finished[number % len(finished)], number, str(UUID(int=number).hex)) for number in range(len(trials), size)
        ]
        _copy_trials(database, copies, random.Random(seed))
    with _opened(store / "mlflow.db") as database:
        _copy_runs(database, [(run_ids[trial["trial_id"]], number, run_id) for trial, number, run_id in copies])


def _copy_trials(database: sqlite3.Connection, copies: Sequence[tuple[Row, int, str]], rng: random.Random) -> None:
    offset = _scalar(database, "SELECT max(trial_id) - max(number) FROM trials")
    _insert(database, "trials", ({**trial, "number": n, "trial_id": n + offset} for trial, n, _ in copies))
    quality = {number: rng.gauss(0.0, 0.05) for _, number, _ in copies}
    for table, key in OF_A_TRIAL.items():
        rows = _by(database, table, "trial_id")
        changed = (
            _changed(table, {**row, "trial_id": number + offset, key: None}, quality[number], run_id, rng)
            for trial, number, run_id in copies
            for row in rows.get(trial["trial_id"], [])
        )
        _insert(database, table, changed)


def _changed(table: str, row: Row, quality: float, run_id: str, rng: random.Random) -> Row:
    """Give a copied row values of its own: a sampler must not see the same trials again and again."""
    if table == "trial_params":
        return {**row, "param_value": _drawn(row["param_name"], row["param_value"], rng)}
    if table == "trial_values":
        return {**row, "value": min(1.0, max(0.0, row["value"] + quality))}
    if table == "trial_intermediate_values":
        return {**row, "intermediate_value": min(1.0, max(0.0, row["intermediate_value"] + quality))}
    if row.get("key") == "run_id":
        return {**row, "value_json": f'"{run_id}"'}
    return row


def _drawn(name: str, value: float, rng: random.Random) -> float:
    """Draw from the baseline space, as Optuna stores it: a choice is its index, a float itself."""
    ranges: dict[str, Callable[[], float]] = {
        "filters_1": lambda: rng.randrange(16, 49, 8),
        "filters_2": lambda: rng.randrange(32, 97, 8),
        "filters_3": lambda: rng.randrange(32, 97, 8),
        "batch_size": lambda: rng.randrange(5),
        "learning_rate": lambda: math.exp(rng.uniform(math.log(3e-5), math.log(1e-2))),
    }
    return float(ranges[name]()) if name in ranges else value


def _copy_runs(database: sqlite3.Connection, copies: Sequence[tuple[str, int, str]]) -> None:
    runs = {run_id: rows[0] for run_id, rows in _by(database, "runs", "run_uuid").items()}
    renamed = (
        {**runs[old], "run_uuid": new, "artifact_uri": runs[old]["artifact_uri"].replace(old, new)}
        for old, _, new in copies
    )
    _insert(database, "runs", renamed)
    for table in OF_A_RUN:
        rows = _by(database, table, "run_uuid")
        changed = (
            {**row, "run_uuid": new} | ({"value": str(number)} if row["key"] == "trial" else {})
            for old, number, new in copies
            for row in rows.get(old, [])
        )
        _insert(database, table, changed)
    _copy_inputs(database, copies)


def _copy_inputs(database: sqlite3.Connection, copies: Sequence[tuple[str, int, str]]) -> None:
    """Give every copied run the data sets of its original."""
    inputs, tags = _by(database, "inputs", "destination_id"), _by(database, "input_tags", "input_uuid")
    numbered = [
        (row, new, f"{index}{new[1:]}")
        for old, _, new in copies
        for index, row in enumerate(inputs.get(old, []), start=1)
    ]
    _insert(database, "inputs", ({**row, "destination_id": new, "input_uuid": uuid} for row, new, uuid in numbered))
    _insert(
        database,
        "input_tags",
        ({**tag, "input_uuid": uuid} for row, _, uuid in numbered for tag in tags.get(row["input_uuid"], [])),
    )


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA synchronous=OFF")
        yield database
        database.commit()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _rows(database: sqlite3.Connection, query: str) -> list[Row]:
    return [dict(row) for row in database.execute(query)]


def _by(database: sqlite3.Connection, table: str, column: str) -> dict[Any, list[Row]]:
    grouped: dict[Any, list[Row]] = {}
    for row in _rows(database, f"SELECT * FROM {table}"):
        grouped.setdefault(row[column], []).append(row)
    return grouped


def _scalar(database: sqlite3.Connection, query: str) -> int:
    return int(database.execute(query).fetchone()[0])


def _run_of(database: sqlite3.Connection, trial_id: int) -> str:
    query = f"SELECT value_json FROM trial_user_attributes WHERE trial_id = {trial_id} AND key = 'run_id'"
    return str(database.execute(query).fetchone()[0]).strip('"')


def _insert(database: sqlite3.Connection, table: str, rows: Iterator[Row]) -> None:
    """Insert rows that all have the same columns, some at a time."""
    command = ""
    batch: list[list[Any]] = []
    for row in rows:
        command = command or f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
        batch.append(list(row.values()))
        if len(batch) == BATCH:
            database.executemany(command, batch)
            batch.clear()
    if batch:
        database.executemany(command, batch)
