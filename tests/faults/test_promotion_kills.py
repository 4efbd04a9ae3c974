"""A promotion and a way back that are killed with SIGKILL: there is a champion at any moment."""

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.conftest import Launch, NewStore
from tests.faults.launcher import Launcher, Life, Plan
from tests.faults.promises import Found, databases_are_whole, no_half_written_model_is_registered
from tests.faults.table import RecordFault

pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]

NAME = "digits-cnn"
STUDY = ("--space", "smoke", "--dataset", "digits", "--precision", "float32", "--finalists", "0", "--workers", "1")
KEPT = "I1 I2 I4 I6"


class Champions:
    """A store with two versions, of which the first is champion; each of the two commands takes it to the other."""

    def __init__(self, launcher: Launcher, root: Path) -> None:
        self.launcher, self.root = launcher, root
        for name in ("first", "second"):
            self._done(launcher.start("run_study", *STUDY, "--trials", 1, "--study", name, "--store", root))
        self._done(self.promote(1))

    def promote(self, version: int, plan: Plan | None = None) -> Life:
        words = ("--version", version, "--force", "a test", "--store", self.root)
        return self.launcher.start("promote", *words, plan=plan)

    def roll_back(self, plan: Plan | None = None) -> Life:
        return self.launcher.start("promote", "--rollback", "--store", self.root, plan=plan)

    def found(self) -> Found:
        return Found(self.root, "first")

    def aliases(self) -> dict[str, int]:
        found = self.found().client.get_registered_model(NAME).aliases
        return {alias: int(number) for alias, number in found.items() if "champion" in alias}

    def decision(self, version: int) -> str | None:
        return self.found().client.get_model_version(NAME, str(version)).tags.get("decision")

    def check(self) -> None:
        """Check what holds at any moment, with nothing mended: one whole champion."""
        databases_are_whole(self.root)
        assert self.aliases()["champion"] in (1, 2)
        no_half_written_model_is_registered(self.found())

    def commits(self) -> tuple[int, int]:
        """Count those of a promotion and of a way back; the first ones write tags that later ones find."""
        self._done(self.promote(2))
        self._done(self.roll_back())
        return self._done(self.promote(2)).commits, self._done(self.roll_back()).commits

    def _done(self, life: Life) -> Life:
        assert life.exit_code == 0, life.shown
        return life


@pytest.fixture(scope="module")
def champions(launch: Launch, new_store: NewStore) -> Champions:
    return Champions(launch(), new_store())


@pytest.fixture(scope="module")
def commits(champions: Champions) -> tuple[int, int]:
    return champions.commits()


def killed_at(commits: int, count: int, seed: int, is_full: bool) -> list[int]:
    every = range(1, commits + 1)
    return list(every) if is_full else sorted(random.Random(seed).sample(every, count))


def test_a_killed_promotion_leaves_a_champion_and_is_completed(
    champions: Champions, commits: tuple[int, int], record_fault: RecordFault, is_full: bool
) -> None:
    phases: Counter[str] = Counter()
    numbers = killed_at(commits[0], 2, 5, is_full)

    for number in numbers:
        killed = champions.promote(2, Plan(commit=number))
        assert killed.was_killed
        champions.check()

        completed = champions.promote(2)

        assert completed.exit_code == 0, completed.shown
        champions.check()
        assert champions.aliases() == {"champion": 2, "previous-champion": 1}
        assert champions.decision(2) == "promoted"
        phases[killed.phase] += 1
        assert champions.roll_back().exit_code == 0

    record_fault("SIGKILL of a promotion at a commit", KEPT, len(numbers), phases)


def test_a_killed_rollback_leaves_a_champion_and_doctor_mends_it(
    champions: Champions, commits: tuple[int, int], record_fault: RecordFault, is_full: bool
) -> None:
    phases: Counter[str] = Counter()
    numbers = killed_at(commits[1], 2, 6, is_full)

    for number in numbers:
        assert champions.promote(2).exit_code == 0
        killed = champions.roll_back(Plan(commit=number))
        assert killed.was_killed
        champions.check()

        assert champions.launcher.start("doctor", "--fix", "--store", champions.root).exit_code == 0
        assert champions.launcher.start("doctor", "--store", champions.root).exit_code == 0
        if champions.aliases()["champion"] == 2:
            assert champions.roll_back().exit_code == 0
        champions.check()
        assert champions.aliases() == {"champion": 1}
        phases[killed.phase] += 1

    record_fault("SIGKILL of a rollback at a commit", KEPT, len(numbers), phases)
