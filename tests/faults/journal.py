"""A journal outside the store: what the processes of a study had done, and were doing, when a fault came."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Where a coordinator tells its workers that they, too, have a journal to write.
JOURNAL = "FAULTS_JOURNAL"
Entry = dict[str, Any]


class Journal:
    """Write a line for each thing that happens; every line is on the disk before the next step is taken."""

    def __init__(self, path: Path, who: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_DSYNC)
        self._who = who

    def note(self, what: str, **attrs: Any) -> None:
        """Write down what has happened."""
        os.write(self._file, (json.dumps({"who": self._who, "what": what, **attrs}) + "\n").encode())

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Write down what is going on while the block runs."""
        self.note("enter", phase=phase)
        try:
            yield
        finally:
            self.note("leave", phase=phase)


def read(path: Path) -> list[Entry]:
    """Return the entries; the last line may have been cut off."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def phase_at_the_end(entries: list[Entry]) -> str:
    """Name what was going on last: what the coordinator was doing, else its worker, else an epoch."""
    going_on: dict[str, list[str]] = {"coordinator": [], "worker": []}
    for entry in entries:
        if entry["what"] == "enter":
            going_on[entry["who"]].append(entry["phase"])
        elif entry["what"] == "leave":
            going_on[entry["who"]].pop()
    # The outermost: what writes a finalist's model is a matter of the finalists.
    return next((phases[0] for phases in going_on.values() if phases), "epoch")
