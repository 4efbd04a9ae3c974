"""One of KerasTuner's oracles, asked and told without its Tuner: it prints nothing, writes nothing and draws by a seed.

Where it reaches for what KerasTuner keeps to itself, a comment says why; the contract test shows that it still fits.
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
from fashion_study.trial import ParamValue

# The name under which an oracle knows a trial's objective.
OBJECTIVE = "objective"
# A draw that repeats a known point is made anew this often before a space counts as exhausted.
MAX_COLLISIONS = 200
# Hyperband begins anew as long as the study's budget lasts. Infinity itself would not be JSON.
ITERATIONS = 1_000_000


@dataclass(frozen=True)
class Draw:
    """Hold what an oracle proposes: its own id of the trial, and values by name, its own `tuner/...` among them."""

    id: str
    values: dict[str, Any]


class Oracle:
    """Draw points of a space and learn their objectives; a point that is drawn runs until its end is told."""

    def __init__(self, sampler: KerasTunerSampler, space: SearchSpace, seed: int) -> None:
        self._sampler = sampler
        with _quietly():
            import_without_stderr("keras_tuner")
            self._oracle = _make(sampler, space, seed)
        # Of one thread: on matrices as small as a model's more of them only wait for each other, for three times the
        # work. To look the libraries up takes as long as a draw.
        self._libraries = ThreadpoolController()
        self._oracle.verbose = 0
        self._oracle._max_collisions = MAX_COLLISIONS
        # Its files would be a second truth beside the trial storage, in the folder that a command happens to run in.
        self._oracle.save = lambda: None
        self._oracle._save_trial = lambda _: None

    def state(self) -> dict[str, Any]:
        """Return what cannot be had from the trials: where Hyperband's brackets stand."""
        from keras_tuner import Oracle as AnyOracle

        known = AnyOracle.get_state(self._oracle).keys()
        own = {name: value for name, value in self._oracle.get_state().items() if name not in known}
        return copy.deepcopy(own)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state, after the trials that belong to it."""
        self._oracle.set_state(self._oracle.get_state() | copy.deepcopy(dict(state)))

    def add(self, trial_id: str, values: Mapping[str, Any]) -> None:
        """Take over a trial that runs, from an earlier process or from another engine."""
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
        """Tell how a trial ended; without an objective it failed."""
        trial = self._oracle.trials[trial_id]
        trial.status = "FAILED" if objective is None else "COMPLETED"
        with _quietly():
            if objective is not None:
                # Once, with the last epoch's: of several steps KerasTuner would take the best.
                self._oracle.update_trial(trial_id, {OBJECTIVE: objective})
            self._oracle.end_trial(trial)
        # Read for nothing but failures in a row, of which there may be any number; it is walked through at each end.
        self._oracle.end_order.clear()

    def reseed(self, seed: int) -> None:
        """Let what is drawn from now on depend on this seed and on the trials alone."""
        self._oracle._seed_state = seed
        if self._sampler == "bayesian":
            self._oracle._random_state = np.random.RandomState(seed)
            self._fit_to_what_has_ended()

    def draw(self, name: str, *, at_random: bool = False) -> Draw | None:
        """Propose a point under a name that is new; None where none is left, or none before a running trial has ended.

        With `at_random` a model of the objective is not asked.
        """
        with _quietly(), self._libraries.limit(limits=1), self._without_model(at_random):
            trial = self._oracle.create_trial(name)
        if trial.status != "RUNNING":
            return None
        if self._sampler == "grid":
            # KerasTuner waits for the end of a trial, since that might bring new parameters; here none can come.
            self._oracle._populate_next.append(trial.trial_id)
        return Draw(trial.trial_id, dict(trial.hyperparameters.values))

    def _fit_to_what_has_ended(self) -> None:
        """Prepare the model that guesses the running trials' objectives.

        KerasTuner guesses them with what it fitted for its last proposal, which a resumed study does not have.
        """
        oracle = self._oracle
        oracle.gpr = oracle._make_gpr()
        trials = oracle.trials
        ended = {trial_id: trial for trial_id, trial in trials.items() if trial.status == "COMPLETED"}
        if oracle.ongoing_trials and ended:
            oracle.trials = ended
            with _quietly(), self._libraries.limit(limits=1):
                oracle.gpr.fit(*oracle._vectorize_trials())
            oracle.trials = trials

    @contextmanager
    def _without_model(self, wanted: bool) -> Iterator[None]:
        if not wanted or self._sampler != "bayesian":
            yield
            return
        usual = self._oracle.num_initial_points
        self._oracle.num_initial_points = len(self._oracle.trials) + 1
        try:
            yield
        finally:
            self._oracle.num_initial_points = usual


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep two remarks from the user: on a deprecated call inside KerasTuner, and on the bounds of its kernel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _make(sampler: KerasTunerSampler, space: SearchSpace, seed: int) -> Any:
    import keras_tuner

    common: dict[str, Any] = {
        "objective": keras_tuner.Objective(OBJECTIVE, "max"),
        "hyperparameters": _hyperparameters(sampler, space, seed),
        # 0 would be no seed to it.
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

    found = HyperParameters()
    if sampler == "grid":
        declare_axes(found, _shuffled(space.grid, seed))
    else:
        declare(found, space, [name for name in space.parameters if sampler != "hyperband" or name != "epochs"])
    return found


def _shuffled(axes: Mapping[str, tuple[ParamValue, ...]], seed: int) -> dict[str, list[ParamValue]]:
    """Reorder a grid by the seed: it is walked through like an odometer, and a budget may end before the grid does."""
    rng = random.Random(seed)
    return {name: rng.sample(axes[name], len(axes[name])) for name in rng.sample(list(axes), len(axes))}
