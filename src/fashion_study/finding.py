"""A finding: what disagrees in a store, and its repair."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """A kind of disagreement between trial storage, runs, registry and files."""

    DATABASE = "damaged database"
    MOVED = "moved store"
    ZOMBIE_STUDY = "study without a process"
    ZOMBIE_TRIAL = "trial without a process"
    ZOMBIE_RUN = "run without a process"
    UNRECORDED_RESULT = "result not in the trial storage"
    STATUS_MISMATCH = "run unlike its trial"
    STALE_BEST = "best objective behind"
    ORPHAN = "orphan run"
    DUPLICATE_CURRENT_RUN = "two current runs"
    DELETED_EXPERIMENT = "deleted experiment"
    DELETED_RUN = "deleted run"
    LOST_RUN = "lost run"
    FILES = "damaged files"
    PENDING_MODEL = "pending model"
    CHECKPOINT = "useless checkpoint"
    ALIAS = "alias without its version"
    VERSION = "damaged version"
    PREVIOUS_CHAMPION = "previous-champion left behind"


@dataclass(frozen=True)
class Finding:
    """What disagrees, where, and how it can be repaired.

    `remedy` describes the repair. `repair` does it, and returns in a few words what was done; it may be repeated
    and may be killed at any point. None: only a person can decide, and `remedy` says what on. `done` is what it has
    returned, None where nothing was repaired.
    """

    kind: Kind
    where: str
    what: str
    remedy: str
    repair: Callable[[], str] | None = field(default=None, compare=False)
    done: str | None = None


def repairing(done: str, action: Callable[..., object], *args: object) -> Callable[[], str]:
    """Return a repair that calls `action` and returns `done`."""

    def repair() -> str:
        action(*args)
        return done

    return repair
