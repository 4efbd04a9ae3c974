"""A real Keras study that is killed again and again comes to the same figures, to the last bit."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.conftest import Launch, NewStore
from tests.faults.launcher import Life, Plan
from tests.faults.promises import Found, check, outcome
from tests.faults.small_study import FIXED, STUDY
from tests.faults.table import RecordFault
from tests.faults.test_kills import is_about_to_be_given_up

TOTAL = 5
WORDS = (*FIXED, "--trials", TOTAL, "--workers", 1, "--finalists", 1, "--repeats", 2)
# What a clock says is never the same twice.
TIMED = {"epoch_seconds", "images_per_second", "train_seconds", "ms_per_image"}
# TensorFlow's import, a trial and a half.
LONGEST = 20.0
KILLS = 10


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_killed_keras_study_ends_as_one_never_killed(
    launch: Launch, new_store: NewStore, record_fault: RecordFault, is_full: bool
) -> None:
    if not is_full:
        pytest.skip("takes minutes; --faults-full runs it")
    never_killed = new_store()
    launcher = replace(launch(TF_DETERMINISTIC_OPS="1"), worker="tests.faults.watched_worker")
    assert launcher.start("run_study", *WORDS, "--store", never_killed).exit_code == 0
    moments = random.Random(7)
    phases: Counter[str] = Counter()

    # A quick machine may come to the end of a study between two kills; then there is another one.
    while phases.total() < KILLS:
        root, lives = new_store(), list[Life]()
        while not lives or lives[-1].was_killed:
            attempt = 2 if is_about_to_be_given_up(root) else 1
            plan = Plan(seconds=moments.uniform(0.0, LONGEST), attempt=attempt) if phases.total() < KILLS else None
            lives.append(launcher.start("run_study", *WORDS, "--store", root, plan=plan))
            if lives[-1].was_killed:
                phases[lives[-1].phase] += 1

        found = Found(root, STUDY)
        check(found, lives, TOTAL)
        assert outcome(found) == outcome(Found(never_killed, STUDY))
        assert metrics(root) == metrics(never_killed)
    record_fault("SIGKILL of a real Keras study, again and again", "I1 I2 I3 I4 I5 I6 I7 I8", KILLS, phases)


def metrics(root: Path) -> dict[tuple[int, int], dict[str, float]]:
    """Return the last metrics of every trial and of every finalist's repeat."""
    return {
        key[:2]: {name: value for name, value in run.data.metrics.items() if name not in TIMED}
        for key, run in sorted(Found(root, STUDY).runs.items())
        if "superseded_by" not in run.data.tags
    }
