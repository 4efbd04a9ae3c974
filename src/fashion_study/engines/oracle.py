"""One of KerasTuner's oracles without its Tuner: it prints nothing, writes nothing and draws by a seed.

Where this uses private attributes of KerasTuner, a comment gives the reason, and the contract test shows that it works.
"""

import copy
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from fashion_study.config import KerasTunerSampler
from fashion_study.space.keras_tuner import declare, declare_axes
from fashion_study.space.space import SearchSpace
from fashion_study.stderr import import_without_stderr

# The name of the objective in an oracle.
OBJECTIVE = "objective"
# How often a draw that repeats a known point is made anew before a space counts as exhausted.
MAX_COLLISIONS = 200
# Hyperband repeats its brackets until the study's budget ends. Infinity itself would not be JSON.
ITERATIONS = 1_000_000


@dataclass(frozen=True)
class Draw:
    """A point of an oracle: the oracle's id of the trial, and values by name, its own `tuner/...` among them."""

    id: str
    values: dict[str, Any]


class Oracle:
    """Oracle that draws points of a space and learns their objectives; a drawn point runs until `end`."""

    def __init__(self, sampler: KerasTunerSampler, space: SearchSpace, seed: int) -> None:
        self._sampler = sampler
        with warnings.catch_warnings(action="ignore"):
            import_without_stderr("keras_tuner")
            self._oracle = _make(sampler, space, seed)
        # For one thread: on matrices as small as a model's, more threads only wait for each other, for three times the
        # work. Kept, since to look the libraries up takes as long as a draw.
        self._libraries = ThreadpoolController()
        self._oracle.verbose = 0
        self._oracle._max_collisions = MAX_COLLISIONS
        # Its files would contradict the trial storage, and lie in the working directory.
        self._oracle.save = lambda: None
        self._oracle._save_trial = lambda _: None

    def state(self) -> dict[str, Any]:
        """Return the state that does not follow from the trials: Hyperband's brackets."""
        from keras_tuner import Oracle as AnyOracle

        known = AnyOracle.get_state(self._oracle).keys()
        own = {name: value for name, value in self._oracle.get_state().items() if name not in known}
        return copy.deepcopy(own)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state, after its trials have been added."""
        self._oracle.set_state(self._oracle.get_state() | copy.deepcopy(dict(state)))

    def add(self, trial_id: str, values: Mapping[str, Any]) -> None:
        """Add a running trial of an earlier process or of another engine."""
        from keras_tuner.engine.trial import Trial

        oracle = self._oracle
        hyperparameters = oracle.get_space()
        hyperparameters.values = dict(values)
        trial = Trial(hyperparameters, trial_id, "RUNNING")
        oracle.trials[trial_id] = oracle.ongoing_trials[trial_id] = trial
        oracle.start_order.append(trial_id)
        oracle._record_values(trial)
        if self._sampler == "grid":
            oracle._ordered_ids.insert(trial_id)
            oracle._populate_next.append(trial_id)

    def end(self, trial_id: str, objective: float | None) -> None:
        """End a trial; without an objective it failed."""
        trial = self._oracle.trials[trial_id]
        trial.status = "FAILED" if objective is None else "COMPLETED"
        with warnings.catch_warnings(action="ignore"):
            if objective is not None:
                # Once, with the last epoch's: of several steps KerasTuner would take the best.
                self._oracle.update_trial(trial_id, {OBJECTIVE: objective})
            self._oracle.end_trial(trial)
        # Used only to count failures in a row, which are not limited here; it is searched at each end.
        self._oracle.end_order.clear()

    def reseed(self, seed: int) -> None:
        """Let the next draws depend on this seed and on the trials alone."""
        self._oracle._seed_state = seed
        if self._sampler == "bayesian":
            self._oracle._random_state = np.random.RandomState(seed)
            self._fit_model()

    def draw(self, name: str, *, at_random: bool = False) -> Draw | None:
        """Draw a point under a new name; None where none is left, or none before a running trial has ended.

        With `at_random` the model of the objective is not used.
        """
        oracle = self._oracle
        if at_random and self._sampler == "bayesian":
            oracle.num_initial_points = len(oracle.trials) + 1  # These are drawn at random.
        with self._quiet():
            trial = oracle.create_trial(name)
        if self._sampler == "bayesian":
            oracle.num_initial_points = None
        if trial.status != "RUNNING":
            return None
        if self._sampler == "grid":
            # KerasTuner waits for the end of a trial, since that might bring new parameters; here none can come.
            oracle._populate_next.append(trial.trial_id)
        return Draw(trial.trial_id, dict(trial.hyperparameters.values))

    def _fit_model(self) -> None:
        """Fit the model that predicts the running trials' objectives to the trials that have ended.

        KerasTuner predicts them with the model of its last proposal, which a resumed study does not have.
        """
        oracle = self._oracle
        oracle.gpr = oracle._make_gpr()
        trials = oracle.trials
        ended = {trial_id: trial for trial_id, trial in trials.items() if trial.status == "COMPLETED"}
        if oracle.ongoing_trials and ended:
            oracle.trials = ended
            with self._quiet():
                oracle.gpr.fit(*oracle._vectorize_trials())
            oracle.trials = trials

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Compute on one thread, without warnings: of a deprecated call inside KerasTuner, and of a kernel's bounds."""
        with warnings.catch_warnings(action="ignore"), self._libraries.limit(limits=1):
            yield


def _make(sampler: KerasTunerSampler, space: SearchSpace, seed: int) -> Any:
    import keras_tuner

    common: dict[str, Any] = {
        "objective": keras_tuner.Objective(OBJECTIVE, "max"),
        "hyperparameters": _hyperparameters(sampler, space, seed),
        # KerasTuner takes 0 for no seed.
        "seed": seed + 1,
        "max_consecutive_failed_trials": None,
    }
    oracles = keras_tuner.oracles
    match sampler:
        case "hyperband":
            return oracles.HyperbandOracle(max_epochs=space.max_epochs, hyperband_iterations=ITERATIONS, **common)
        case "bayesian":
            return oracles.BayesianOptimizationOracle(max_trials=None, **common)
        case "random":
            return oracles.RandomSearchOracle(max_trials=None, **common)
        case "grid":
            return oracles.GridSearchOracle(**common)


def _hyperparameters(sampler: KerasTunerSampler, space: SearchSpace, seed: int) -> Any:
    from keras_tuner import HyperParameters

    hyperparameters = HyperParameters()
    if sampler == "grid":
        # Shuffled: KerasTuner takes the axes in order, the last one fastest, and a budget may end before the grid does.
        rng, grid = random.Random(seed), space.grid
        names = rng.sample(list(grid), len(grid))
        declare_axes(hyperparameters, {name: rng.sample(grid[name], len(grid[name])) for name in names})
    else:
        names = [name for name in space.parameters if sampler != "hyperband" or name != "epochs"]
        declare(hyperparameters, space, names)
    return hyperparameters
