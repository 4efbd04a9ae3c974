"""The promises of every engine, over a kit of canonical spaces; a new engine is written as `UniformEngine` is."""

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna import create_study, load_study
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, create_trial

from fashion_study.config import KerasTunerSampler, PrunerName, SamplerName
from fashion_study.engines import optuna_engine
from fashion_study.engines.engine import Candidate, Engine, Exhausted, Wait, distributions_of
from fashion_study.engines.keras_tuner_engine import KerasTunerEngine
from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.space.space import Categorical, Float, Int, SearchSpace
from fashion_study.store.trials import TrialStorage
from fashion_study.testing.memory import memory_storage
from fashion_study.testing.training import toy_accuracy
from fashion_study.trial import FailReason, Hyperparameters, ParamValue, TrialResult, TrialSpec, TrialState, trial_seed

Point = dict[str, ParamValue]

KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "int": {"dense_units": {"type": "int", "low": 8, "high": 12, "grid": [8, 12]}},
    "int_log": {"batch_size": {"type": "int", "low": 8, "high": 1024, "log": True, "grid": [8, 64, 1024]}},
    "int_step": {"filters_1": {"type": "int", "low": 4, "high": 16, "step": 4}},
    "float": {"decay": {"type": "float", "low": 0.0, "high": 0.5, "grid": [0.0, 0.25]}},
    "float_log": {"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True, "grid": [1e-3, 1e-1]}},
    "float_step": {"decay": {"type": "float", "low": 0.0, "high": 0.7, "step": 0.1, "grid": [0.1, 0.7]}},
    "categorical": {"optimizer": {"type": "categorical", "choices": ["sgd", "adam", "rmsprop"]}},
    "categorical_numbers": {"batch_size": {"type": "categorical", "choices": [512, 64, 128]}},
    "single_point": {
        "filters_1": {"type": "int", "low": 8, "high": 8},
        "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-3, "log": True, "grid": [1e-3]},
        "optimizer": {"type": "categorical", "choices": ["adam"]},
    },
    "grid": {
        "filters_1": {"type": "int", "low": 4, "high": 8, "step": 4},
        "optimizer": {"type": "categorical", "choices": ["adam", "sgd"]},
        "decay": {"type": "float", "low": 0.0, "high": 0.5, "grid": [0.0, 0.5]},
    },
}
KINDS["countable"] = {
    "optimizer": {"type": "categorical", "choices": ["sgd", "adam"]},
    "filters_1": {"type": "int", "low": 4, "high": 8, "step": 4},
    "decay": {"type": "float", "low": 0.0, "high": 0.2, "step": 0.1, "grid": [0.0, 0.1, 0.2]},
}
KINDS["mixed"] = (
    KINDS["int"]
    | KINDS["int_log"]
    | KINDS["int_step"]
    | KINDS["float_step"]
    | KINDS["float_log"]
    | KINDS["categorical"]
    | {"filters_2": {"type": "int", "low": 8, "high": 8}}
)


def canonical(kind: str, **more: dict[str, Any]) -> SearchSpace:
    """Build a space of one kind, with three epochs and each parameter's lowest or first value as its baseline."""
    parameters = {name: spec | {"why": "A test."} for name, spec in (KINDS[kind] | more).items()}
    fixed = Hyperparameters(epochs=3).model_dump()
    return SearchSpace.model_validate(
        {
            "name": kind,
            "purpose": "Drive an engine.",
            "baseline": {
                name: spec["choices"][0] if spec["type"] == "categorical" else spec["low"]
                for name, spec in parameters.items()
            },
            "parameters": parameters,
            "fixed": {name: value for name, value in fixed.items() if name not in parameters},
        }
    )


@pytest.fixture(scope="module")
def storage() -> RDBStorage:
    return memory_storage()


@pytest.fixture
def trial_storage(storage: RDBStorage, request: pytest.FixtureRequest) -> TrialStorage:
    return TrialStorage(storage, request.node.nodeid)


@pytest.fixture
def quick_storage() -> TrialStorage:
    # Much faster than a database, and enough where no trial is sent back to waiting.
    return TrialStorage(InMemoryStorage(), "quick")


class EngineContract(ABC):
    """The promises of an engine. To test a new one, subclass this as `TestAnEngineOfOnesOwn` does: `make` builds the
    engine, and `trials` is the number of trials after which its own rule of drawing has been at work.
    """

    trials: int

    @abstractmethod
    def make(
        self,
        trial_storage: TrialStorage,
        space: SearchSpace,
        seed: int = 0,
        try_points: tuple[Point, ...] = (),
    ) -> Engine:
        """Make the engine under test on an open trial storage."""

    def space(self, kind: str) -> SearchSpace:
        """Make a space of the kit, with what the engine needs besides."""
        return canonical(kind)

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_suggestion_lies_inside_the_space(self, kind: str, quick_storage: TrialStorage) -> None:
        space = self.space(kind)
        engine = self.make(quick_storage, space)

        suggestions = [searched(proposal, space) for proposal in proposals(engine, quick_storage, self.trials)]

        assert suggestions[0] == space.baseline
        for params in suggestions:
            assert {name: value for name, value in params.items() if not space.parameters[name].contains(value)} == {}
            assert space.hyperparameters(params).model_dump() | params == space.hyperparameters(params).model_dump()

    def test_numbers_count_from_zero_and_attempts_from_one(self, trial_storage: TrialStorage) -> None:
        space = self.space("mixed")

        found = proposals(self.make(trial_storage, space), trial_storage, 3)

        assert [(proposal.number, proposal.attempt) for proposal in found] == [(0, 1), (1, 1), (2, 1)]
        assert {proposal.supersedes for proposal in found} == {None}

    def test_points_to_try_come_right_after_the_baseline(self, trial_storage: TrialStorage) -> None:
        space = self.space("mixed")
        points = tuple(space.complete(point) for point in ({"optimizer": "rmsprop"}, {"dense_units": 11}))
        engine = self.make(trial_storage, space, try_points=points)

        suggestions = [searched(proposal, space) for proposal in proposals(engine, trial_storage, 4)]

        assert suggestions[:3] == [space.baseline, *points]
        assert suggestions[3] not in suggestions[:3]

    def test_a_seed_decides_the_trials(self) -> None:
        space = self.space("mixed")

        def params(seed: int) -> list[Point]:
            own = TrialStorage(InMemoryStorage(), "quick")
            return [searched(proposal, space) for proposal in proposals(self.make(own, space, seed), own, self.trials)]

        first = params(5)
        assert params(5) == first
        assert params(6) != first

    def test_a_resumed_study_is_proposed_the_same_trials(self, trial_storage: TrialStorage, tmp_path: Path) -> None:
        space = self.space("mixed")
        tried = (space.complete({"dense_units": 10}),)
        whole = proposals(self.make(trial_storage, space, 5, tried), trial_storage, self.trials)

        resumed: list[TrialSpec] = []
        for total in (1, self.trials // 2, self.trials - 1, self.trials):
            # Objects of their own each time, as in a new process; what was running is sent back as reconcile does.
            own = TrialStorage(RDBStorage(f"sqlite:///{tmp_path / 'optuna.db'}"), trial_storage.name)
            for record in own.records():
                if record.state is TrialState.RUNNING:
                    own.requeue(record.number)
            engine = self.make(own, space, 5, tried)
            resumed += proposals(engine, own, total - own.counted())
            asked(engine, own)

        assert [proposal.hyperparameters for proposal in resumed] == [proposal.hyperparameters for proposal in whole]
        assert [proposal.number for proposal in resumed] == list(range(self.trials))

    def test_a_waiting_trial_is_proposed_before_any_other(self, trial_storage: TrialStorage) -> None:
        space = self.space("mixed")
        engine = self.make(trial_storage, space)
        proposals(engine, trial_storage, 2)
        first = asked(engine, trial_storage)
        trial_storage.requeue(first.number)

        again = engine.ask()

        assert again == replace(first, attempt=2, supersedes=run_id(first))

    def test_an_enqueued_point_is_completed_and_tried(self, trial_storage: TrialStorage, storage: RDBStorage) -> None:
        space = self.space("mixed")
        proposals(self.make(trial_storage, space), trial_storage, 2)
        load_study(study_name=trial_storage.name, storage=storage).enqueue_trial({"dense_units": 11})
        own = TrialStorage(storage, trial_storage.name)

        tried = asked(self.make(own, space), own)

        assert (tried.number, searched(tried, space)) == (2, space.complete({"dense_units": 11}))

    def test_failed_trials_do_not_stop_it(self, trial_storage: TrialStorage) -> None:
        space = self.space("mixed")
        engine = self.make(trial_storage, space)
        seen = []
        for reason in itertools.islice(itertools.cycle(FailReason), self.trials):
            proposal = asked(engine, trial_storage)
            seen.append(proposal.hyperparameters)
            engine.tell(TrialResult(proposal.number, proposal.attempt, TrialState.FAILED, 0, reason=reason))

        assert len(set(seen)) == self.trials
        assert {record.state for record in trial_storage.records()} == {TrialState.FAILED}

    def test_a_point_to_try_that_was_tried_is_not_tried_again(self, trial_storage: TrialStorage) -> None:
        space = self.space("mixed")
        first = proposals(self.make(trial_storage, space), trial_storage, 2)

        engine = self.make(trial_storage, space, try_points=tuple(searched(proposal, space) for proposal in first))

        assert [record.state for record in trial_storage.records()] == [TrialState.COMPLETE] * 2
        assert asked(engine, trial_storage).hyperparameters not in [proposal.hyperparameters for proposal in first]

    def test_a_small_space_is_tried_whole_and_no_point_twice(self, trial_storage: TrialStorage) -> None:
        space = self.space("countable")
        engine = self.make(trial_storage, space)

        suggestions = [searched(proposal, space) for proposal in proposals(engine, trial_storage, 100)]

        every = {
            (optimizer, filters, decay)
            for optimizer in ("sgd", "adam")
            for filters in (4, 8)
            for decay in (0.0, 0.1, 0.2)
        }
        values = [(point["optimizer"], point["filters_1"], round(float(point["decay"]), 9)) for point in suggestions]
        assert sorted(values) == sorted(every)
        assert [record.number for record in trial_storage.records()] == list(range(len(every)))
        answer = self.make(trial_storage, space).ask()
        assert isinstance(answer, Exhausted)
        assert answer.reason
        assert len(trial_storage.records()) == len(every)

    def test_a_running_point_comes_again_only_when_requeued(self, trial_storage: TrialStorage) -> None:
        space = self.space("categorical")
        engine = self.make(trial_storage, space)
        running = [asked(engine, trial_storage) for _ in range(3)]
        assert isinstance(engine.ask(), Exhausted)

        trial_storage.requeue(running[1].number)

        assert {proposal.hyperparameters.optimizer for proposal in running} == {"sgd", "adam", "rmsprop"}
        assert engine.ask() == replace(running[1], attempt=2, supersedes=run_id(running[1]))

    def test_reports_and_results_reach_the_trial_storage(self, trial_storage: TrialStorage) -> None:
        engine = self.make(trial_storage, self.space("mixed"))
        complete, pruned = asked(engine, trial_storage), asked(engine, trial_storage)
        for epoch, value in ((1, 0.25), (2, 0.5)):
            engine.report(complete.number, epoch, value)
        engine.tell(completed(complete, 0.5))
        engine.report(pruned.number, 1, 0.125)
        engine.tell(TrialResult(pruned.number, pruned.attempt, TrialState.PRUNED, 1))

        first, second = trial_storage.records()
        assert (first.state, first.objective, first.curve) == (TrialState.COMPLETE, 0.5, {1: 0.25, 2: 0.5})
        assert (second.state, second.objective, second.curve) == (TrialState.PRUNED, None, {1: 0.125})


class UniformEngine(Engine):
    """The least that an engine has to be: points drawn uniformly, and a rule that stops trials below one half."""

    def draw(self, number: int, seed: int) -> Iterator[Candidate]:  # noqa: ARG002
        rng = random.Random(seed)
        for _ in range(500):
            yield Candidate({name: uniform(rng, parameter) for name, parameter in self.space.parameters.items()})

    def prune(self, trial: FrozenTrial) -> bool:
        return trial.intermediate_values[trial.last_step or 0] < 0.5


def uniform(rng: random.Random, parameter: Int | Float | Categorical) -> ParamValue:
    match parameter:
        case Categorical():
            return rng.choice(parameter.choices)
        case Float(step=float(step)):
            steps = rng.randint(0, round((parameter.high - parameter.low) / step))
            return min(parameter.low + step * steps, parameter.high)
        case Float():
            return rng.uniform(parameter.low, parameter.high)
        case Int():
            return rng.randrange(parameter.low, parameter.high + 1, parameter.step)


class TestAnEngineOfOnesOwn(EngineContract):
    trials = 4

    def make(
        self,
        trial_storage: TrialStorage,
        space: SearchSpace,
        seed: int = 0,
        try_points: tuple[Point, ...] = (),
    ) -> Engine:
        return UniformEngine(trial_storage, space, seed, try_points)

    def test_its_rule_stops_trials_but_never_the_baseline(self, trial_storage: TrialStorage) -> None:
        engine = self.make(trial_storage, self.space("mixed"))
        baseline, other = asked(engine, trial_storage), asked(engine, trial_storage)

        assert [engine.report(baseline.number, epoch, 0.1) for epoch in (1, 2)] == [False, False]
        assert [engine.report(other.number, epoch, value) for epoch, value in ((1, 0.9), (2, 0.1))] == [False, True]

    def test_a_prune_decision_holds_for_a_later_attempt(self, trial_storage: TrialStorage) -> None:
        engine = self.make(trial_storage, self.space("mixed"))
        asked(engine, trial_storage)
        other = asked(engine, trial_storage)
        assert engine.report(other.number, 2, 0.1)
        trial_storage.requeue(other.number)

        engine = self.make(trial_storage, self.space("mixed"))
        again = asked(engine, trial_storage)

        assert again.number == other.number
        assert [engine.report(again.number, epoch, 0.9) for epoch in (1, 2)] == [False, True]


class OptunaContract(EngineContract):
    sampler: SamplerName
    trials = 4

    def make(
        self,
        trial_storage: TrialStorage,
        space: SearchSpace,
        seed: int = 0,
        try_points: tuple[Point, ...] = (),
        pruner: PrunerName = "hyperband",
    ) -> Engine:
        return OptunaEngine(trial_storage, space, self.sampler, pruner, seed, try_points)

    def test_the_baseline_is_never_pruned(self, trial_storage: TrialStorage) -> None:
        space = self.space("mixed")
        engine = self.make(trial_storage, space, pruner="median")
        baseline = asked(engine, trial_storage)
        for _ in range(6):
            good = asked(engine, trial_storage)
            assert [engine.report(good.number, epoch, 0.9) for epoch in (1, 2, 3)] == [False] * 3
            engine.tell(completed(good, 0.9))
        bad = asked(engine, trial_storage)

        assert [engine.report(baseline.number, epoch, 0.1) for epoch in (1, 2, 3)] == [False] * 3
        assert any(engine.report(bad.number, epoch, 0.1) for epoch in (1, 2))


class TestTpe(OptunaContract):
    sampler = "tpe"
    trials = 12  # It draws at random until ten have ended.

    def test_it_proposes_what_the_sampler_of_optuna_does(self, trial_storage: TrialStorage) -> None:
        space = self.space("mixed")
        engine = self.make(trial_storage, space, seed=5, pruner="none")
        asked(engine, trial_storage)  # It runs all the while.
        proposals(engine, trial_storage, self.trials)

        for _ in range(3):
            own = create_study(
                direction="maximize", sampler=TPESampler(seed=trial_seed(5, len(trial_storage.trials())))
            )
            own.add_trials(trial_storage.trials())
            assert searched(asked(engine, trial_storage), space) == own.ask(distributions_of(space)).params


class TestRandom(OptunaContract):
    sampler = "random"

    def test_many_draws_without_a_new_point_exhaust_a_space(self, trial_storage: TrialStorage) -> None:
        narrow = {"type": "float", "low": 1e-3, "high": 1e-3 + 1e-18, "log": True, "why": "A test."}
        content = canonical("float_log").model_dump(exclude={"parameters"})
        space = SearchSpace.model_validate(
            content | {"baseline": {"learning_rate": 1e-3}, "parameters": {"learning_rate": narrow}}
        )
        engine = self.make(trial_storage, space)

        assert len(proposals(engine, trial_storage, 100)) == len(trial_storage.records()) == 1
        assert isinstance(engine.ask(), Exhausted)


class TestQmc(OptunaContract):
    sampler = "qmc"


class TestGrid(OptunaContract):
    sampler = "grid"

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mixed"])
    def test_a_grid_is_proposed_once_and_then_exhausted(self, kind: str, quick_storage: TrialStorage) -> None:
        space = canonical(kind)
        engine = self.make(quick_storage, space)
        grid = [dict(zip(space.grid, values, strict=True)) for values in itertools.product(*space.grid.values())]

        suggestions = [searched(proposal, space) for proposal in proposals(engine, quick_storage, 100)]

        expected = grid if space.baseline in grid else [*grid, space.baseline]
        assert sorted(suggestions, key=repr) == sorted(expected, key=repr)
        answer = engine.ask()
        assert isinstance(answer, Exhausted)
        assert answer.reason


class KerasTunerContract(EngineContract):
    sampler: KerasTunerSampler
    trials = 4

    def make(
        self,
        trial_storage: TrialStorage,
        space: SearchSpace,
        seed: int = 0,
        try_points: tuple[Point, ...] = (),
    ) -> Engine:
        return KerasTunerEngine(trial_storage, space, self.sampler, seed, try_points)


class TestKerasTunerRandom(KerasTunerContract):
    sampler = "random"


class TestKerasTunerBayesian(KerasTunerContract):
    sampler = "bayesian"


class TestKerasTunerGrid(KerasTunerContract):
    sampler = "grid"

    test_a_grid_is_proposed_once_and_then_exhausted = TestGrid.test_a_grid_is_proposed_once_and_then_exhausted


class TestKerasTunerHyperband(KerasTunerContract):
    sampler = "hyperband"
    trials = 16  # The baseline, a first bracket of 9 + 3 + 1 trials, and two of the next one.

    def space(self, kind: str) -> SearchSpace:
        return canonical(kind, epochs={"type": "int", "low": 1, "high": 9})

    def test_a_small_space_is_tried_whole_and_no_point_twice(self, trial_storage: TrialStorage) -> None:
        space = self.space("countable")
        engine = self.make(trial_storage, space)

        suggestions = [searched(proposal, space) for proposal in proposals(engine, trial_storage, 100)]

        configurations = {(point["optimizer"], point["filters_1"], point["decay"]) for point in suggestions}
        assert len(configurations) == 12
        assert len({tuple(point.values()) for point in suggestions}) == len(suggestions)
        answer = self.make(trial_storage, space).ask()
        assert isinstance(answer, Exhausted)
        assert answer.reason
        assert len(trial_storage.records()) == len(suggestions)

    def test_a_running_point_comes_again_only_when_requeued(self, trial_storage: TrialStorage) -> None:
        engine = self.make(trial_storage, self.space("categorical"))
        running = []
        while isinstance(answer := engine.ask(), TrialSpec):
            trial_storage.begin_attempt(answer.number, answer.attempt, run_id(answer))
            running.append(answer)
        # What ends next may be promoted.
        assert isinstance(answer, Wait)

        trial_storage.requeue(running[1].number)

        assert {proposal.hyperparameters.optimizer for proposal in running} == {"sgd", "adam", "rmsprop"}
        assert engine.ask() == replace(running[1], attempt=2, supersedes=run_id(running[1]))


def asked(engine: Engine, trial_storage: TrialStorage) -> TrialSpec:
    """Ask for a proposal and begin it, as the coordinator does."""
    answer = engine.ask()
    assert isinstance(answer, TrialSpec)
    trial_storage.begin_attempt(answer.number, answer.attempt, run_id(answer))
    return answer


def proposals(engine: Engine, trial_storage: TrialStorage, count: int) -> list[TrialSpec]:
    """Train up to `count` trials on the toy objective, one after the other, until nothing is left to propose."""
    return list(itertools.islice(_trained(engine, trial_storage), count))


def _trained(engine: Engine, trial_storage: TrialStorage) -> Iterator[TrialSpec]:
    while not isinstance(answer := engine.ask(), Exhausted):
        assert isinstance(answer, TrialSpec)
        trial_storage.begin_attempt(answer.number, answer.attempt, run_id(answer))
        engine.report(answer.number, 1, toy_accuracy(answer.hyperparameters, 1))
        engine.tell(completed(answer, toy_accuracy(answer.hyperparameters, 3)))
        yield answer


def completed(proposal: TrialSpec, objective: float) -> TrialResult:
    return TrialResult(proposal.number, proposal.attempt, TrialState.COMPLETE, 3, objective)


def run_id(proposal: TrialSpec) -> str:
    return f"run-{proposal.number}-{proposal.attempt}"


def searched(proposal: TrialSpec, space: SearchSpace) -> Point:
    return {name: getattr(proposal.hyperparameters, name) for name in space.parameters}


def test_tpe_looks_at_the_best_and_at_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_engine, "TPE_HISTORY", 30)
    monkeypatch.setattr(optuna_engine, "GOOD_TRIALS", 3)
    trial_storage = TrialStorage(InMemoryStorage(), "many")
    engine = OptunaEngine(trial_storage, canonical("mixed"))
    trial_storage.study.add_trials([create_trial(value=-abs(number - 40.0)) for number in range(1, 30)])
    assert engine.tpe_history() == trial_storage.trials()
    trial_storage.study.add_trials([create_trial(value=-abs(number - 40.0)) for number in range(30, 99)])
    assert [trial.number for trial in engine.tpe_history()] == [39, 40, 41, *range(72, 99)]


def test_tpe_keeps_away_from_what_is_infeasible(trial_storage: TrialStorage) -> None:
    parameters = {"filters_1": {"type": "int", "low": 1, "high": 256, "why": "The wider the better, up to a limit."}}
    space = SearchSpace.model_validate(
        {"name": "wider", "purpose": "A limit.", "baseline": {"filters_1": 8}, "parameters": parameters}
    )
    engine = OptunaEngine(trial_storage, space)
    widths = []
    for _ in range(60):
        proposal = asked(engine, trial_storage)
        widths.append(proposal.hyperparameters.filters_1)
        if widths[-1] <= 64:
            engine.tell(completed(proposal, widths[-1] / 256))
        else:
            reason = FailReason.INFEASIBLE
            engine.tell(TrialResult(proposal.number, proposal.attempt, TrialState.FAILED, 0, reason=reason))
    # The best lies at the limit. Were nothing learnt from those beyond it, one to four of these were feasible.
    assert sum(width <= 64 for width in widths[30:]) >= 10
    assert max(width for width in widths if width <= 64) >= 60
