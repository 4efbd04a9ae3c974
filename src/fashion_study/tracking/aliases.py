"""The alias `champion`, and the champions before it, moved so that a kill at any point leaves a champion."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fashion_study.errors import ExitCode, StoreError, StudyError
from fashion_study.tracking.registry import CHAMPION, LINE, PREVIOUS_CHAMPION, RegisteredModel, Registry, Version

NOBODY = "none"
# The most rollbacks in a row; a tag holds some thousand characters.
LONGEST_LINE = 100


class ConcurrentUpdateError(StudyError):
    """Another command moved `champion` at the same time."""

    exit_code = ExitCode.ANSWER_IS_NO


class NoPreviousChampionError(StudyError):
    """No version was champion before this one."""

    exit_code = ExitCode.ANSWER_IS_NO


class PromotionRunningError(StoreError):
    """Another command of this store may be moving `champion`."""


@contextmanager
def promotion_lock(root: Path, timeout: float = 0.0) -> Iterator[None]:
    """Keep every other command of the store at `root` from moving `champion` while the block runs.

    `timeout` is how many seconds to wait for a command that holds the lock.

    Raises:
        PromotionRunningError: it still holds the lock.
    """
    folder = root / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".promotion.lock").acquire(timeout)
    except Timeout:
        raise PromotionRunningError(
            f"Another promotion is running on {root}, or the doctor. Expected one at a time. Nothing was moved; wait "
            "for it, then look at what it decided."
        ) from None
    with lock:
        yield


def set_champion(registry: Registry, model: RegisteredModel, challenger: Version) -> None:
    """Make a version champion in the place of the champion of `model`, which becomes `previous-champion`.

    Raises:
        ConcurrentUpdateError: another version is champion now.
    """
    before = [] if model.champion is None else [model.champion, *model.former_champions]
    _move(registry, model, challenger, before)


def rollback(registry: Registry, model: RegisteredModel) -> None:
    """Make the previous champion the champion again.

    Raises:
        NoPreviousChampionError: there is none.
        ConcurrentUpdateError: another version is champion now.
    """
    _move(registry, model, previous_champion(model), model.former_champions[1:])


def previous_champion(model: RegisteredModel) -> Version:
    """Return the version that a rollback makes champion.

    Raises:
        NoPreviousChampionError: there is none.
    """
    if model.previous is None:
        raise NoPreviousChampionError(
            f"{model.champion or model.name} cannot be rolled back: no version was champion before it. "
            "Expected an earlier promotion. Nothing was moved; promote another version instead."
        )
    return model.previous


def sync_alias(registry: Registry, model: RegisteredModel) -> None:
    """Let `previous-champion` point to the latest former champion, where a kill kept a command from moving it."""
    previous, shown = model.previous, model.by_alias(PREVIOUS_CHAMPION)
    if previous is not None and previous != shown:
        registry.move_alias(model.name, PREVIOUS_CHAMPION, previous.number)
    elif previous is None and shown is not None:
        registry.remove_alias(model.name, PREVIOUS_CHAMPION)


def _move(registry: Registry, model: RegisteredModel, target: Version, before: Sequence[Version]) -> None:
    # The tag first, which has no effect until its version is champion; then the champion, in one write, which decides;
    # the other alias last. The next command repairs what a kill in between leaves.
    numbers = ",".join(str(version.number) for version in before[:LONGEST_LINE])
    registry.tag(target, {LINE: numbers or NOBODY})
    _check_champion(registry.model(model.name), model.champion, "Nothing was moved")
    registry.move_alias(model.name, CHAMPION, target.number)
    # MLflow has no compare-and-set: on a server another command may have written after this one.
    moved = registry.model(model.name)
    _check_champion(moved, target, "Its decision holds, not this one")
    sync_alias(registry, moved)


def _check_champion(model: RegisteredModel, expected: Version | None, consequence: str) -> None:
    found = model.champion
    if (found and found.number) != (expected and expected.number):
        raise ConcurrentUpdateError(
            f"{found or f'No version of {model.name}'} is champion now: another command moved the alias at the "
            f"same time. Expected {expected or 'none'}. {consequence}; look at it in MLflow, and promote again."
        )
