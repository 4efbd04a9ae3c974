"""A study whose coordinator is killed with SIGKILL at any moment: the next start goes on as if nothing had been."""

import random
from collections import Counter
from pathlib import Path

import optuna
import pytest

from fashion_study.tracking.search import pending_models
from tests.faults.conftest import Launch, NewStore
from tests.faults.launcher import Life, Plan
from tests.faults.promises import (
    Found,
    check,
    databases_are_whole,
    no_acknowledged_result_is_lost,
    nothing_runs_without_an_owner,
    outcome,
)
from tests.faults.small_study import EVERYTHING, FIXED, SMALL, STUDY, TOTAL, killed_and_resumed, sample
from tests.faults.table import RecordFault

pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]

# Long enough for two proposals by the model of the sampler, after its ten random ones.
LONG_TOTAL = 12
LONG = (*FIXED, "--trials", LONG_TOTAL, "--workers", 1, "--finalists", 2, "--repeats", 2)
# An epoch long enough to be killed in.
EPOCH = {"TOY_EPOCH": "0.1"}


def test_killed_while_its_worker_writes_it_ends_the_same(
    whole: tuple[Life, object], launch: Launch, new_store: NewStore, record_fault: RecordFault, is_full: bool
) -> None:
    phases: Counter[str] = Counter()
    numbers = sample(3, whole[0].steps, 2, is_full)

    for number in numbers:
        root = new_store()
        lives = killed_and_resumed(launch(), root, Plan(step=number))

        found = Found(root, STUDY)
        check(found, lives, TOTAL)
        assert outcome(found) == whole[1], number
        experiments = [one.experiment_id for one in found.client.search_experiments()]
        assert not list(pending_models(found.client, experiments, lambda _: True))
        phases[lives[0].phase] += 1

    record_fault("SIGKILL of the coordinator while its worker writes", EVERYTHING, len(numbers), phases)


def test_killed_repeatedly_it_ends_with_the_same_trials(
    launch: Launch, new_store: NewStore, record_fault: RecordFault, is_full: bool
) -> None:
    never_killed = new_store()
    assert launch(**EPOCH).start("run_study", *LONG, "--store", never_killed).exit_code == 0
    moments = random.Random(3)
    phases: Counter[str] = Counter()
    launcher, root = launch(**EPOCH), new_store()
    lives: list[Life] = []

    while sum(phases.values()) < (20 if is_full else 5):
        plan = Plan(seconds=moments.uniform(0.0, 0.5), attempt=2 if is_about_to_be_given_up(root) else 1)
        lives.append(launcher.start("run_study", *LONG, "--store", root, plan=plan))
        assert lives[-1].was_killed, lives[-1].shown
        phases[lives[-1].phase] += 1
        databases_are_whole(root)
        no_acknowledged_result_is_lost(Found(root, STUDY), lives)
    lives.append(launcher.start("run_study", *LONG, "--store", root))

    found = Found(root, STUDY)
    check(found, lives, LONG_TOTAL)
    assert outcome(found) == outcome(Found(never_killed, STUDY))
    record_fault("SIGKILL of the coordinator at a random moment, again and again", EVERYTHING, len(lives) - 1, phases)


def is_about_to_be_given_up(root: Path) -> bool:
    """Say whether a trial was cut off so often that once more would be its end."""
    try:
        study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{root}/optuna.db")
    except KeyError:
        return False
    return any(not trial.state.is_finished() and trial.user_attrs.get("attempt", 0) >= 3 for trial in study.trials)


def test_after_a_kill_doctor_mends_all_and_the_study_goes_on(
    whole: tuple[Life, object], launch: Launch, new_store: NewStore, record_fault: RecordFault, is_full: bool
) -> None:
    phases: Counter[str] = Counter()
    # From where there is a study; before that the doctor has nothing to say.
    started = range(20, whole[0].commits, 6)
    numbers = started if is_full else random.Random(4).sample(started, 2)

    for number in numbers:
        launcher, root = launch(), new_store()
        killed = launcher.start("run_study", *SMALL, "--store", root, plan=Plan(commit=number))
        assert killed.was_killed

        fixed = launcher.start("doctor", "--fix", "--store", root)

        assert fixed.exit_code == 0, fixed.shown
        nothing_runs_without_an_owner(Found(root, STUDY))
        looked = launcher.start("doctor", "--store", root)
        assert looked.exit_code == 0, looked.shown
        resumed = launcher.start("run_study", *SMALL, "--store", root)
        found = Found(root, STUDY)
        check(found, [killed, fixed, resumed], TOTAL)
        assert outcome(found) == whole[1], number
        phases[killed.phase] += 1

    record_fault("SIGKILL of the coordinator, then `doctor --fix`", EVERYTHING, len(numbers), phases)
