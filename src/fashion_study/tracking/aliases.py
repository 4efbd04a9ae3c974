"""The alias `champion` and the line of those before it, written so that a kill at any point leaves both sane."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow import MlflowClient

from fashion_study.errors import ExitCode, StoreError, StudyError
from fashion_study.tracking.registry import CHAMPION, PREVIOUS_CHAMPION, Registry, Version

# On each champion: the versions that were champion before it, the latest first. The alias `previous-champion` only
# shows the first of them; where a kill left it behind, this tag knows better.
LINE = "champions_before"
NOBODY = "none"
# So many steps can be gone back; a tag holds some thousand characters.
LONGEST_LINE = 100


class ConcurrentUpdateError(StudyError):
    """Report that somebody else moved `champion` at the same time."""

    exit_code = ExitCode.ANSWER_IS_NO


class PromotionRunningError(StoreError):
    """Report that another command of this store may be moving `champion`."""


@contextmanager
def promotion_lock(root: Path, patience: float = 0.0) -> Iterator[None]:
    """Keep every other command of the store at `root` from moving `champion` while the block runs.

    `patience` is how many seconds to wait for one that is at it.

    Raises:
        PromotionRunningError: it is still at it.
    """
    folder = root / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".promotion.lock", timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise PromotionRunningError(
            f"Another promotion is running on {root}, or the doctor. Expected one at a time. Nothing was moved; wait "
            "for it, then look at what it decided."
        ) from None
    try:
        yield
    finally:
        lock.release()


class Champions:
    """Read and move the champion of one registered model."""

    def __init__(self, client: MlflowClient, name: str) -> None:
        self._registry = Registry(client)
        self._name = name

    def current(self) -> Version | None:
        """Return the champion, None where there has never been one."""
        return self._registry.by_alias(self._name, CHAMPION)

    def previous(self) -> Version | None:
        """Return the version that one step back would make champion, None where there is none."""
        versions = {version.number: version for version in self._registry.versions(self._name)}
        champion = next((version for version in versions.values() if CHAMPION in version.aliases), None)
        if champion is None:
            return None
        line = self._line(champion, versions)
        return versions[line[0]] if line else None

    def set_champion(self, challenger: Version, expected: Version | None) -> None:
        """Make a version champion in the place of `expected`, which becomes `previous-champion`.

        Raises:
            LostRaceError: another version is champion now.
        """
        versions = {version.number: version for version in self._registry.versions(self._name)}
        line = [] if expected is None else [expected.number, *self._line(expected, versions)]
        self._move(challenger, line, expected)

    def rollback(self) -> tuple[Version, Version] | None:
        """Make the previous champion the champion again; return who went and who came, None where nobody can.

        Raises:
            LostRaceError: another version is champion now.
        """
        champion, previous = self.current(), self.previous()
        if champion is None or previous is None:
            return None
        versions = {version.number: version for version in self._registry.versions(self._name)}
        self._move(previous, self._line(champion, versions)[1:], champion)
        return champion, previous

    def sync_alias(self) -> None:
        """Let `previous-champion` show what the champion's line says, where a killed command left it behind."""
        previous = self.previous()
        shown = self._registry.by_alias(self._name, PREVIOUS_CHAMPION)
        if previous is not None and (shown is None or shown.number != previous.number):
            self._registry.move_alias(self._name, PREVIOUS_CHAMPION, previous.number)
        elif previous is None and shown is not None:
            self._registry.remove_alias(self._name, PREVIOUS_CHAMPION)

    def _move(self, target: Version, line: list[int], expected: Version | None) -> None:
        # The line first, which says nothing until its version is champion; then the champion, in one write, which
        # decides; the other alias last. A kill in between leaves nothing that the next command does not mend.
        numbers = ",".join(str(number) for number in line[:LONGEST_LINE])
        self._registry.tag(target, {LINE: numbers or NOBODY})
        self._refuse_unless_champion(expected, "Nothing was moved")
        self._registry.move_alias(self._name, CHAMPION, target.number)
        # MLflow has no compare-and-set: on a server another command may have written after us.
        self._refuse_unless_champion(target, "Its decision holds, not this one")
        self.sync_alias()

    def _refuse_unless_champion(self, expected: Version | None, consequence: str) -> None:
        found = self.current()
        if (found and found.number) != (expected and expected.number):
            raise ConcurrentUpdateError(
                f"{found or f'No version of {self._name}'} is champion now: another command moved the alias at the "
                f"same time. Expected {expected or 'none'}. {consequence}; look at it in MLflow, and promote again."
            )

    def _line(self, champion: Version, versions: dict[int, Version]) -> list[int]:
        """Read who was champion before, without versions that were deleted since."""
        if (tag := champion.tags.get(LINE)) is None:
            # Made champion by hand.
            shown = (number for number, version in versions.items() if PREVIOUS_CHAMPION in version.aliases)
            return [number for number in shown if number != champion.number]
        numbers = (int(word) for word in tag.split(",") if word.strip().isdecimal())
        return [number for number in numbers if number in versions]
