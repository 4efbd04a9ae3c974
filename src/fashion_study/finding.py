"""The words of an examination: what disagrees, and what mends it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """Name a kind of disagreement between ledger, runs, registry and files."""

    DATABASE = "damaged database"
    MOVED = "moved store"
    ZOMBIE_STUDY = "study without a process"
    ZOMBIE_TRIAL = "trial without a process"
    ZOMBIE_RUN = "run without a process"
    UNTOLD = "result not in the ledger"
    UNLIKE = "run unlike its trial"
    BEHIND = "best objective behind"
    ORPHAN = "orphan run"
    TWO_CURRENT = "two current runs"
    DELETED_RUN = "deleted run"
    LOST_RUN = "lost run"
    FILES = "damaged files"
    HALF_WRITTEN = "half-written model"
    ALIAS = "alias without its version"
    VERSION = "damaged version"
    PREVIOUS_CHAMPION = "previous-champion left behind"


@dataclass(frozen=True)
class Finding:
    """Say what disagrees, where, and how it can be mended.

    `remedy` says what mending does. `repair` does it, and returns in a few words what was done; it may be repeated
    and may be killed at any point. None: only a person can decide, and `remedy` says what on.
    """

    kind: Kind
    where: str
    what: str
    remedy: str
    repair: Callable[[], str] | None = field(default=None, compare=False)
