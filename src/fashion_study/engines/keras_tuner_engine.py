"""KerasTuner as the engine: its oracles propose, the trial storage remembers.

What an oracle knows is written down on the trial storage's own trials, each in the one write that adds the trial: which trial
of the oracle it is, and how the oracle stood when it had proposed it. A new process rebuilds the oracle from there.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from fashion_study.config import KerasTunerSampler
from fashion_study.engines.engine import Exhausted, Proposal, Wait
from fashion_study.engines.oracle import Draw, Oracle
from fashion_study.engines.points import Point, distributions_of, key_of
from fashion_study.space.keras_tuner import values_within
from fashion_study.space.space import SearchSpace
from fashion_study.store.trials import TrialStorage
from fashion_study.trial import Checkpoint, ParamValue, TrialResult, trial_seed

# The attribute of a trial that keeps what the oracle has to know of it.
ORACLE = "oracle"
# These learn from trials that they did not propose. Hyperband ranks those of its own brackets alone, and a grid has
# its points from the beginning.
LEARNING = ("bayesian", "random")
# A model that has settled on a known point is asked this often before a point is drawn at random.
MODEL_DRAWS = 3
# So many draws in a row that know nothing new mean that there is next to nothing.
DRAWS = 200


class KerasTunerEngine:
    """Propose trials of `space` into the trial storage: the baseline first, then the user's own points, then the oracle's.

    No point is proposed twice; only a trial that was sent back to waiting comes again, under its own number. A point
    of the oracle's that the trial storage has already is no trial: the oracle is told what it reached.

    Under Hyperband the oracle decides the epochs, from 1 to the space's most; a promoted trial is a trial of its own
    that goes on from the model of the one before it. There `space` has to search `epochs`.
    """

    def __init__(
        self,
        trial_storage: TrialStorage,
        space: SearchSpace,
        sampler: KerasTunerSampler = "hyperband",
        seed: int = 0,
        try_points: tuple[Mapping[str, ParamValue], ...] = (),
    ) -> None:
        self._trial_storage = trial_storage
        self._space = space
        self._sampler = sampler
        self._seed = seed
        self._distributions = distributions_of(space)
        if sampler == "hyperband":
            self._distributions["epochs"] = IntDistribution(1, space.max_epochs)
        self._numbers = {key_of(trial.params): trial.number for trial in trial_storage.trials()}
        for point in (space.baseline, *try_points):
            if key_of(point) not in self._numbers:
                self._numbers[key_of(point)] = len(trial_storage.trials())
                trial_storage.enqueue(point, self._distributions)
        self._oracle = Oracle(sampler, space, seed)
        # The oracle's trials, each with the trial storage's that it stands for; those whose end it does not know yet.
        self._number_by_id: dict[str, int] = {}
        self._open: set[str] = set()
        # Its trials that repeat one of the trial storage's, and that no trial of the trial storage names yet.
        self._repeats: list[dict[str, Any]] = []
        self._rebuild()

    def ask(self) -> Proposal | Wait | Exhausted:
        """Return a trial that waits, else a new one drawn with the seed of its number."""
        trial = self._trial_storage.claim_waiting() or self._new_trial()
        if not isinstance(trial, FrozenTrial):
            return trial
        return Proposal(
            trial.number,
            int(trial.user_attrs.get("attempt", 0)) + 1,
            dict(trial.params),
            trial.user_attrs.get("run_id"),
            self._checkpoint(trial),
        )

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Record the objective after `epoch`; no trial is pruned."""
        self._trial_storage.record_value(number, epoch, value)
        return False

    def tell(self, result: TrialResult) -> None:
        """Record for good how a trial ended; the oracle learns it from the trial storage before it is asked again."""
        self._trial_storage.close(result)

    def _rebuild(self) -> None:
        """Bring the oracle to where the trial storage says that it stood."""
        state: Mapping[str, Any] = {}
        for trial in self._trial_storage.trials():
            known = trial.user_attrs.get(ORACLE)
            if known is not None and known["sampler"] == self._sampler:
                for repeated in known["repeats"]:
                    self._add(repeated["id"], repeated["values"], repeated["number"])
                self._add(known["id"], known["values"], trial.number)
                state = known["state"]
            elif self._sampler in LEARNING:
                self._add(f"ledger-{trial.number}", trial.params, trial.number)
        self._oracle.restore(state)

    def _add(self, trial_id: str, values: Mapping[str, Any], number: int) -> None:
        self._oracle.add(trial_id, values)
        self._stands_for(trial_id, number)

    def _stands_for(self, trial_id: str, number: int) -> None:
        self._number_by_id[trial_id] = number
        self._open.add(trial_id)

    def _new_trial(self) -> FrozenTrial | Wait | Exhausted:
        """Add a trial to the trial storage that it has not; say why where no such point is found."""
        trials = self._trial_storage.trials()
        number = len(trials)
        self._learn(trials)
        self._oracle.reseed(trial_seed(self._seed, number))
        for place in self._places():
            draw = self._oracle.draw(f"{number}/{place}", at_random=place >= MODEL_DRAWS)
            if draw is None:
                break
            point = self._point(draw)
            known = self._numbers.setdefault(key_of(point), number)
            self._stands_for(draw.id, known)
            if known == number:
                return self._trial_storage.add(point, self._distributions, self._attributes(draw))
            self._repeats.append({"id": draw.id, "values": draw.values, "number": known})
            self._learn(trials)
        # Hyperband alone can get new points from the end of a trial.
        return Wait() if self._sampler == "hyperband" and self._open else Exhausted(self._why_exhausted())

    def _places(self) -> Iterator[int]:
        return itertools.count() if self._sampler == "grid" else iter(range(DRAWS))

    def _learn(self, trials: Sequence[FrozenTrial]) -> None:
        """Tell the oracle of every trial that has ended since, whoever ended it."""
        for trial_id in sorted(self._open, key=lambda trial_id: (self._number_by_id[trial_id], trial_id)):
            trial = trials[self._number_by_id[trial_id]]
            if trial.state.is_finished():
                self._oracle.end(trial_id, trial.value if trial.state is OptunaState.COMPLETE else None)
                self._open.remove(trial_id)

    def _point(self, draw: Draw) -> Point:
        if self._sampler != "hyperband":
            return values_within(self._space, draw.values)
        epochs = {"epochs": draw.values["tuner/epochs"]}
        return values_within(self._space, draw.values) | epochs

    def _attributes(self, draw: Draw) -> dict[str, Any]:
        oracle = {
            "sampler": self._sampler,
            "id": draw.id,
            "values": draw.values,
            "repeats": self._repeats,
            "state": self._oracle.state(),
        }
        self._repeats = []
        earlier = draw.values.get("tuner/trial_id")
        return {ORACLE: oracle} if earlier is None else {ORACLE: oracle, "continues": self._number_by_id[earlier]}

    def _checkpoint(self, trial: FrozenTrial) -> Checkpoint | None:
        number = trial.user_attrs.get("continues")
        if number is None:
            return None
        earlier = self._trial_storage.trial(number)
        return Checkpoint(number, earlier.user_attrs.get("run_id"), earlier.params["epochs"])

    def _why_exhausted(self) -> str:
        if self._sampler == "grid":
            return "every point of the grid has been proposed. Another --sampler can go on"
        return f"{DRAWS} draws in a row found no new point. A wider space can go on"
