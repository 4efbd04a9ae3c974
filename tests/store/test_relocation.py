"""The promise of a moved store: its addresses are changed once, all of them, by however many commands."""

import shutil
import sqlite3
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Queue

from fashion_study.store.relocation import COLUMNS, moves, rebase
from fashion_study.store.store import open_store
from tests.support.study_store import Studies

STARTS = 2
RUNS = 10


def mend(root: Path, together: Barrier, copies: "Queue[list[Path | None]]") -> None:
    """Mend a store in a process of its own, which finds what is wrong with it when all the others do."""
    store = open_store(root)
    found = moves(store)
    together.wait()
    copies.put([rebase(store, move) for move in found])


def test_commands_started_at_once_repair_a_moved_store_once(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    studies = Studies(old)
    study = studies.study("moved", ended=1)
    runs = [studies.trial(study, 0.5) for _ in range(RUNS)]
    shutil.copytree(old, new)
    # Logged after the move: the addresses still lead into the old folder.
    client = open_store(new).client()
    late = [client.create_run(studies.experiment).info.run_id for _ in range(RUNS)]
    for run_id in late:
        client.log_dict(run_id, {"objective": 0.5}, "evidence.json")

    context = get_context("spawn")
    together, copies = context.Barrier(STARTS), context.Queue()
    processes = [context.Process(target=mend, args=(new, together, copies)) for _ in range(STARTS)]
    for process in processes:
        process.start()
    answers = [copies.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0] * STARTS
    (copy,) = [made for answer in answers for made in answer if made is not None]
    assert list((new / "backups").iterdir()) == [copy]
    assert moves(open_store(new)) == []
    with closing(sqlite3.connect(new / "mlflow.db")) as connection:
        for table, column in COLUMNS:
            assert not connection.execute(f"SELECT 1 FROM {table} WHERE {column} LIKE '%/old/%'").fetchall()
    shutil.rmtree(old)
    for run_id in (*runs, *late):
        assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["evidence.json"]
    assert not list(new.rglob("*.part"))
