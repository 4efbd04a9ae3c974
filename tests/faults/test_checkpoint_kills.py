"""A study of one worker that is killed again and again comes to the same bits, and trains little twice."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fashion_study.store.checkpoints import read
from tests.faults.conftest import Launch, NewStore
from tests.faults.dying_worker import DEATHS, STEPS
from tests.faults.promises import Found, check, outcome
from tests.faults.small_study import STUDY
from tests.faults.table import RecordFault
from tests.faults.test_keras_kills import metrics

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

TRIALS = 6
# With the default pruner: what is paused, and who goes on, is the same too.
DEFAULTS = ("--space", "smoke", "--dataset", "digits", "--precision", "float32", "--trials", TRIALS, "--workers", 1)
WORDS = (*DEFAULTS, "--finalists", 2, "--repeats", 3)
# The steps from one death to the next, in turn: four make an epoch, and a trial that comes to the end of none in four
# attempts is given up.
FROM_STEP_TO_STEP = (range(1, 9), range(5, 9))


def test_a_study_killed_in_its_epochs_ends_as_one_never_killed(
    launch: Launch, new_store: NewStore, record_fault: RecordFault, tmp_path: Path, is_full: bool
) -> None:
    kills = 100 if is_full else 20
    phases: Counter[str] = Counter()
    never_killed, _ = run(launch, new_store(), tmp_path / "never", set())
    trained = epochs(tmp_path / "never")
    draws = random.Random(3)
    while phases.total() < kills:
        place = tmp_path / f"killed-{phases.total()}"
        deaths = set(itertools.accumulate(draws.choice(FROM_STEP_TO_STEP[turn % 2]) for turn in range(500)))
        found, root = run(launch, new_store(), place, deaths)
        steps = (place / "steps").read_text().splitlines()
        died = [name for step, name in enumerate(steps, 1) if step in deaths]
        phases.update(died)

        assert outcome(found) == outcome(never_killed)
        assert metrics(root) == metrics(never_killed.root)
        assert weights(found) == weights(never_killed)
        assert all(steps == sorted(set(steps)) for steps in logged(found))
        assert sum((epochs(place) - trained).values()) <= len(died)
        assert checkpoints(found) == checkpoints(never_killed)
    record_fault("SIGKILL of a worker in its epochs", "I1 I2 I3 I4 I5 I6 I7 I8", phases.total(), phases)


def run(launch: Launch, root: Path, place: Path, deaths: set[int]) -> tuple[Found, Path]:
    """Run the study with a worker that dies at these steps."""
    place.mkdir()
    (place / "deaths").write_text(" ".join(map(str, sorted(deaths))))
    variables = {DEATHS: str(place / "deaths"), STEPS: str(place / "steps")}
    launcher = replace(launch(**variables), worker="tests.faults.dying_worker")
    life = launcher.start("run_study", *WORDS, "--store", root)
    found = Found(root, STUDY)
    check(found, [life], TRIALS)
    return found, root


def epochs(place: Path) -> Counter[str]:
    """Count the epochs that workers have begun."""
    return Counter(step for step in (place / "steps").read_text().splitlines() if step == "before an epoch")


def weights(found: Found) -> dict[tuple[int, int], str]:
    """Return the digest of the weights of every trial and repeat."""
    runs = {key[:2]: run for key, run in sorted(found.runs.items()) if "superseded_by" not in run.data.tags}
    return {key: run.data.tags["weights_sha256"] for key, run in runs.items() if run.info.status == "FINISHED"}


def checkpoints(found: Found) -> dict[str, bytes]:
    """Return the variables that are kept of the paused trials."""
    return {path.name: read(path)[1] for path in sorted((found.root / "checkpoints").rglob("*.checkpoint"))}


def logged(found: Found) -> Iterator[list[int]]:
    """Yield the steps of every run's curve, as they were logged."""
    for run in found.all_runs:
        yield [point.step for point in found.client.get_metric_history(run.info.run_id, "val_accuracy")]
