"""A study whose coordinator is killed with SIGKILL at a commit: the next start goes on as if nothing had been."""

from collections import Counter

import pytest

from tests.faults.conftest import Launch, NewStore
from tests.faults.launcher import Life, Plan
from tests.faults.promises import Found, check, outcome
from tests.faults.small_study import EVERYTHING, FIXED, STUDY, TOTAL, killed_and_resumed, sample
from tests.faults.table import RecordFault

pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]


def test_killed_at_any_commit_it_ends_as_if_it_had_not_been(
    whole: tuple[Life, object], launch: Launch, new_store: NewStore, record_fault: RecordFault, is_full: bool
) -> None:
    phases: Counter[str] = Counter()
    numbers = sample(4, whole[0].commits, 1, is_full)

    for number in numbers:
        root = new_store()
        lives = killed_and_resumed(launch(), root, Plan(commit=number, is_after=number % 2 == 0))

        found = Found(root, STUDY)
        check(found, lives, TOTAL)
        assert outcome(found) == whole[1], number
        phases[lives[0].phase] += 1

    record_fault("SIGKILL of the coordinator at a commit", EVERYTHING, len(numbers), phases)


def test_with_two_workers_a_kill_costs_two_attempts_at_most(
    launch: Launch, new_store: NewStore, record_fault: RecordFault, is_full: bool
) -> None:
    words = (*FIXED, "--trials", "5", "--workers", "2", "--finalists", "0")
    commits = launch().start("run_study", *words, "--store", new_store()).commits
    phases: Counter[str] = Counter()
    numbers = range(10, commits - 10, 6) if is_full else sample(2, commits - 10, 8, is_full)

    for number in numbers:
        launcher, root = launch(), new_store()
        killed = launcher.start("run_study", *words, "--store", root, plan=Plan(commit=number))
        assert killed.was_killed
        resumed = launcher.start("run_study", *words, "--store", root)
        check(Found(root, STUDY, workers=2), [killed, resumed], 5)
        phases[killed.phase] += 1

    record_fault("SIGKILL of the coordinator of two workers at a commit", EVERYTHING, len(numbers), phases)
