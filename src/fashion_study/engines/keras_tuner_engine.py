"""KerasTuner as the engine: its oracles propose, the trial storage remembers.

The state of an oracle is stored with the trials, each in the one write that adds the trial: which of the oracle's
trials it is, and the oracle's state when it had proposed it. A new process rebuilds the oracle from there.
Where this uses private attributes of KerasTuner, a comment gives the reason, and the contract test shows that it works.
"""

import copy
import itertools
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from optuna.distributions import IntDistribution
from optuna.trial import TrialState as OptunaState
from threadpoolctl import ThreadpoolController

from fashion_study.config import KerasTunerSampler
from fashion_study.engines.engine import CONTINUES, Candidate, Engine, Exhausted, Wait
from fashion_study.libraries import import_without_stderr
from fashion_study.space.keras_tuner import declare, of_one_type, values_within
from fashion_study.space.space import SearchSpace
from fashion_study.store.trials import TrialStorage
from fashion_study.trial import ParamValue

# The attribute of a trial with the oracle's state.
ORACLE = "oracle"
# These learn from trials that they did not propose. Hyperband ranks those of its own brackets alone, and a grid has
# its points from the beginning.
LEARNING = ("bayesian", "random")
# A model that has settled on a known point is asked this often before a point is drawn at random.
MODEL_DRAWS = 3
# So many draws in a row without a new point mean that there is next to none; an oracle itself draws as often.
DRAWS = 200
# The name of the objective in an oracle.
OBJECTIVE = "objective"
# Hyperband repeats its brackets until the study's budget ends. Infinity itself would not be JSON.
ITERATIONS = 1_000_000


class KerasTunerEngine(Engine):
    """Engine that draws with an oracle of KerasTuner's and prunes no trial.

    Where the oracle draws a point that the trial storage has, no trial is added: the oracle is told the known result.
    Under Hyperband the oracle decides the epochs, from 1 to the space's most; a promoted trial is a trial of its own
    that goes on from the checkpoint of the one before it. There `space` has to search `epochs`.
    """

    def __init__(
        self,
        trial_storage: TrialStorage,
        space: SearchSpace,
        sampler: KerasTunerSampler = "hyperband",
        seed: int = 0,
        try_points: tuple[Mapping[str, ParamValue], ...] = (),
    ) -> None:
        epochs = {"epochs": IntDistribution(1, space.max_epochs)} if sampler == "hyperband" else {}
        super().__init__(trial_storage, space, seed, try_points, epochs)
        self._sampler = sampler
        self.continues_trials = sampler == "hyperband"
        self._oracle = Oracle(sampler, space, seed)
        # The number of the trial behind each of the oracle's trials; those whose end the oracle does not know yet.
        self._number_by_id: dict[str, int] = {}
        self._open: set[str] = set()
        # The oracle's trials that repeat a known point, and that no stored trial names yet.
        self._repeats: list[dict[str, Any]] = []
        self._rebuild()

    def draw(self, number: int, seed: int) -> Iterator[Candidate | Wait | Exhausted]:
        """Yield the oracle's next new point, or why there is none."""
        self._learn()
        self._oracle.reseed(seed)
        for index in itertools.count() if self._sampler == "grid" else range(DRAWS):
            drawn = self._oracle.draw(f"{number}/{index}", at_random=index >= MODEL_DRAWS)
            if drawn is None:
                break
            trial_id, values = drawn
            point = values_within(self.space, values)
            if self._sampler == "hyperband":
                point["epochs"] = values["tuner/epochs"]
            known = self.number_of(point)
            self._link(trial_id, number if known is None else known)
            if known is None:
                yield Candidate(point, self._attrs(trial_id, values))
                return
            self._repeats.append({"id": trial_id, "values": values, "number": known})
            self._learn()
        if self._sampler == "hyperband" and self._open:
            yield Wait()  # The end of a trial may bring a promotion.
        elif self._sampler == "grid":
            yield Exhausted("every point of the grid has been proposed. Another --sampler can go on")
        else:
            yield Exhausted(f"{DRAWS} draws in a row found no new point. A wider space can go on")

    def _rebuild(self) -> None:
        """Bring the oracle to the state that the trial storage has of it."""
        state: Mapping[str, Any] = {}
        for trial in self.trial_storage.trials():
            known = trial.user_attrs.get(ORACLE)
            if known is not None and known["sampler"] == self._sampler:
                for repeated in known["repeats"]:
                    self._add(repeated["id"], repeated["values"], repeated["number"])
                self._add(known["id"], known["values"], trial.number)
                state = known["state"]
            elif self._sampler in LEARNING and trial.params.keys() == self.distributions.keys():
                self._add(f"stored-{trial.number}", trial.params, trial.number)
        self._oracle.restore(state)

    def _add(self, trial_id: str, values: Mapping[str, Any], number: int) -> None:
        self._oracle.add(trial_id, values)
        self._link(trial_id, number)

    def _link(self, trial_id: str, number: int) -> None:
        self._number_by_id[trial_id] = number
        self._open.add(trial_id)

    def _learn(self) -> None:
        """Tell the oracle of every trial that has ended since, in this process or in another."""
        for trial_id in sorted(self._open, key=lambda trial_id: (self._number_by_id[trial_id], trial_id)):
            trial = self.trial_storage.trial(self._number_by_id[trial_id])
            if trial.state.is_finished():
                self._oracle.end(trial_id, trial.value if trial.state is OptunaState.COMPLETE else None)
                self._open.remove(trial_id)

    def _attrs(self, trial_id: str, values: Mapping[str, Any]) -> dict[str, Any]:
        repeats, self._repeats = self._repeats, []
        state = self._oracle.state()
        oracle = {"sampler": self._sampler, "id": trial_id, "values": values, "repeats": repeats, "state": state}
        earlier = values.get("tuner/trial_id")
        return {ORACLE: oracle} if earlier is None else {ORACLE: oracle, CONTINUES: self._number_by_id[earlier]}


class Oracle:
    """One of KerasTuner's oracles without its Tuner: it prints nothing, writes nothing and draws by a seed.

    A point that it has drawn runs until `end`.
    """

    def __init__(self, sampler: KerasTunerSampler, space: SearchSpace, seed: int) -> None:
        self._sampler = sampler
        with warnings.catch_warnings(action="ignore"):
            import_without_stderr("keras_tuner")
            self._oracle = _make(sampler, space, seed)
        # For one thread: on matrices as small as a model's, more threads only wait for each other, for three times the
        # work. Kept, since to look the libraries up takes as long as a draw.
        self._libraries = ThreadpoolController()
        self._oracle.verbose = 0
        self._oracle._max_collisions = DRAWS
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

    def draw(self, name: str, *, at_random: bool) -> tuple[str, dict[str, Any]] | None:
        """Draw a point under a new name; return its trial's id and its values, the oracle's own `tuner/...` among them.

        None where none is left, or none before a running trial has ended. With `at_random` the model of the objective
        is not used.
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
        return trial.trial_id, dict(trial.hyperparameters.values)

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
        for name in names:
            values = rng.sample(grid[name], len(grid[name]))
            hyperparameters.Choice(name, of_one_type(values), ordered=False)
    else:
        names = [name for name in space.parameters if sampler != "hyperband" or name != "epochs"]
        declare(hyperparameters, space, names)
    return hyperparameters
