"""KerasTuner as the engine: its oracles propose, the trial storage remembers.

The state of an oracle is stored with the trials, each in the one write that adds the trial: which of the oracle's
trials it is, and the oracle's state when it had proposed it. A new process rebuilds the oracle from there.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.distributions import IntDistribution
from optuna.trial import TrialState as OptunaState

from fashion_study.config import KerasTunerSampler
from fashion_study.engines.engine import CONTINUES, Candidate, Engine, Exhausted, Wait
from fashion_study.engines.oracle import Draw, Oracle
from fashion_study.space.keras_tuner import values_within
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
# So many draws in a row without a new point mean that there is next to none.
DRAWS = 200


class KerasTunerEngine(Engine):
    """Engine that draws with an oracle of KerasTuner's and prunes no trial.

    Where the oracle draws a point that the trial storage has, no trial is added: the oracle is told the known result.
    Under Hyperband the oracle decides the epochs, from 1 to the space's most; a promoted trial is a trial of its own
    that continues from the model of the one before it. There `space` has to search `epochs`.
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
            draw = self._oracle.draw(f"{number}/{index}", at_random=index >= MODEL_DRAWS)
            if draw is None:
                break
            point = values_within(self.space, draw.values)
            if self._sampler == "hyperband":
                point["epochs"] = draw.values["tuner/epochs"]
            known = self.number_of(point)
            if known is None:
                self._link(draw.id, number)
                yield Candidate(point, self._attrs(draw))
                return
            self._link(draw.id, known)
            self._repeats.append({"id": draw.id, "values": draw.values, "number": known})
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
            elif self._sampler in LEARNING:
                self._add(f"stored-{trial.number}", trial.params, trial.number)
        self._oracle.restore(state)

    def _add(self, trial_id: str, values: Mapping[str, Any], number: int) -> None:
        self._oracle.add(trial_id, values)
        self._link(trial_id, number)

    def _link(self, trial_id: str, number: int) -> None:
        self._number_by_id[trial_id] = number
        self._open.add(trial_id)

    def _learn(self) -> None:
        """Tell the oracle of every trial that has ended since, whoever ended it."""
        for trial_id in sorted(self._open, key=lambda trial_id: (self._number_by_id[trial_id], trial_id)):
            trial = self.trial_storage.trial(self._number_by_id[trial_id])
            if trial.state.is_finished():
                self._oracle.end(trial_id, trial.value if trial.state is OptunaState.COMPLETE else None)
                self._open.remove(trial_id)

    def _attrs(self, draw: Draw) -> dict[str, Any]:
        repeats, self._repeats = self._repeats, []
        state = self._oracle.state()
        oracle = {"sampler": self._sampler, "id": draw.id, "values": draw.values, "repeats": repeats, "state": state}
        earlier = draw.values.get("tuner/trial_id")
        return {ORACLE: oracle} if earlier is None else {ORACLE: oracle, CONTINUES: self._number_by_id[earlier]}
