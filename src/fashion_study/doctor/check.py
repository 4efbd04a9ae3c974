"""The check of a store: everything that can disagree in it, in the order in which it has to be repaired."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fashion_study.finding import Finding, Kind
from fashion_study.store.failures import store_failures
from fashion_study.store.relocation import Move, moves, rebase
from fashion_study.store.store import Store, find_store


@dataclass(frozen=True)
class CheckedFinding:
    """A finding, and what was done about it; None: nothing."""

    finding: Finding
    done: str | None = None


@dataclass(frozen=True)
class CheckReport:
    """The findings in a store, and notes on what is no damage."""

    store: Store
    is_fixing: bool
    results: tuple[CheckedFinding, ...]
    notes: tuple[str, ...]

    @property
    def remaining(self) -> int:
        """Return how many findings are left."""
        return sum(result.done is None for result in self.results)


def check_store(root: Path, fix: bool = False) -> CheckReport:
    """Compare trial storage, runs, registry and files of a store; with `fix` repair what can be repaired.

    No result is deleted: what is lost is recorded as lost. A study that a process is running is left alone.

    Raises:
        StoreError: there is no store, and nothing is made; or it cannot be read.
    """
    store = find_store(root, needs="either")
    notes: list[str] = []
    with store_failures(store, "What was repaired stays repaired; call the doctor again when it answers."):
        results = tuple(
            CheckedFinding(found, found.repair() if fix and found.repair else None) for found in _findings(store, notes)
        )
    return CheckReport(store, fix, results, tuple(notes))


def _findings(store: Store, notes: list[str]) -> Iterator[Finding]:
    """Find what disagrees, each after what has to be repaired before it."""
    from fashion_study.doctor.databases import damaged_databases

    is_readable = True
    for found in damaged_databases(store):
        is_readable = False
        yield found
    if not is_readable:
        notes.append("Nothing else was looked at: a damaged database tells nothing that can be trusted.")
        return
    if store.is_embedded and not (store.root / "mlflow.db").is_file():
        notes.append("No study of this store has a run yet: run_study goes on with it.")
        return
    for move in moves(store):
        yield _moved(store, move)
    yield from _of_open_store(store, notes)


def _moved(store: Store, move: Move) -> Finding:
    def repair() -> str:
        if (copy := rebase(store, move)) is None:
            return "they point here: another process has seen to it"
        return f"they point here; {copy.relative_to(store.root)} is the database as it was"

    what = f"{move.addresses} addresses of artifacts point to {move.old}"
    return Finding(Kind.MOVED, "mlflow.db", what, "lets them point here, after a copy of the database", repair)


def _of_open_store(store: Store, notes: list[str]) -> Iterator[Finding]:
    from fashion_study.doctor.context import CheckContext
    from fashion_study.doctor.files import damaged_files
    from fashion_study.doctor.registry import damaged_registry
    from fashion_study.doctor.runs import damaged_reproductions, orphan_runs
    from fashion_study.doctor.studies import damaged_studies

    context = CheckContext(store, store.client(), notes)
    if not store.is_embedded:
        notes.append(
            f"MLflow's data lie at {store.tracked_at}: its database, where it keeps its files, and runs of other "
            "stores are not looked at."
        )
    yield from damaged_studies(context)
    yield from damaged_reproductions(context)
    yield from orphan_runs(context)
    if moves(store):
        notes.append("Files and registry are checked once the addresses are repaired.")
        return
    yield from damaged_files(context)
    yield from damaged_registry(context)
