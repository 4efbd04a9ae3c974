"""The study that is killed: small, so that each of its commits can be the last."""

import random
from pathlib import Path

from tests.faults.launcher import Launcher, Life, Plan

EVERYTHING = "I1 I2 I3 I4 I5 I6 I7 I8"
STUDY = "digits-smoke"
# With a pruner that ends trials: every trial comes to an end, and what is compared needs no order of reports.
FIXED = ("--space", "smoke", "--dataset", "digits", "--precision", "float32", "--pruner", "successive-halving")
TOTAL = 3
SMALL = (*FIXED, "--trials", TOTAL, "--workers", 1, "--finalists", 1, "--repeats", 2)


def sample(count: int, of: int, seed: int, is_full: bool) -> list[int]:
    """Choose some of the numbers from 1 to `of`; all of them where everything is asked for."""
    return list(range(1, of + 1)) if is_full else sorted(random.Random(seed).sample(range(1, of + 1), count))


def killed_and_resumed(launcher: Launcher, root: Path, plan: Plan) -> list[Life]:
    """Kill the small study by a plan, and start it again."""
    killed = launcher.start("run_study", *SMALL, "--store", root, plan=plan)
    assert killed.was_killed, (plan, killed.exit_code, killed.shown)
    return [killed, launcher.start("run_study", *SMALL, "--store", root)]
