"""The promises of the KerasTuner engine beyond the contract: rungs, promotions, and all state in the trial storage."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.storages import InMemoryStorage

from fashion_study.config import KerasTunerSampler
from fashion_study.engines.engine import Engine, Exhausted, Wait
from fashion_study.engines.keras_tuner_engine import KerasTunerEngine
from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.space.space import SearchSpace
from fashion_study.store.trials import MAX_RETRIES, TrialStorage
from fashion_study.study.loop import Loop
from fashion_study.study.proposals import Proposals
from fashion_study.testing.memory import MemoryExecutor, MemoryTracker, RecordingObserver, memory_storage
from fashion_study.trial import EarlierTrial, ParamValue, Precision, TrialResult, TrialSpec, TrialState, trial_seed
from tests.engines.test_engine_contract import asked, canonical, completed, proposals, run_id


def nine_epochs(kind: str = "float_log", low: int = 1) -> SearchSpace:
    return canonical(kind, epochs={"type": "int", "low": low, "high": 9})


def in_memory(name: str = "study") -> TrialStorage:
    return TrialStorage(InMemoryStorage(), name)


def on_disk(folder: Path) -> TrialStorage:
    """Open the same trial storage with objects of its own each time, as a new process does."""
    from optuna.storages import RDBStorage

    trial_storage = TrialStorage(RDBStorage(f"sqlite:///{folder / 'optuna.db'}"), "study")
    for record in trial_storage.records():
        if record.state is TrialState.RUNNING:
            trial_storage.requeue(record.number)
    return trial_storage


def test_hyperband_promotes_the_best_and_continues_its_run() -> None:
    trial_storage, space = in_memory(), nine_epochs(low=5)

    found = proposals(KerasTunerEngine(trial_storage, space), trial_storage, 14)

    epochs = [proposal.hyperparameters.epochs for proposal in found]
    # The baseline; then nine configurations for one epoch, the best three for three, the best of these for nine.
    assert epochs == [5] + 9 * [1] + 3 * [3] + [9]
    objectives = {record.number: record.objective or 0.0 for record in trial_storage.records()}
    best_three = sorted(range(1, 10), key=lambda number: -objectives[number])[:3]
    assert [proposal.continues for proposal in found[10:13]] == [
        EarlierTrial(number, f"run-{number}-1", 1, ((trial_seed(0, number), 1),)) for number in best_three
    ]
    winner = found[13].continues
    assert winner is not None
    assert (winner.number, winner.epochs) == (10, 3)
    first = trial_seed(0, best_three[0]), trial_seed(0, 10)
    assert winner.seeds == ((first[0], 1), (first[1], 3))
    for proposal in found[10:]:
        assert proposal.continues is not None
        earlier = found[proposal.continues.number]
        assert proposal.hyperparameters.learning_rate == earlier.hyperparameters.learning_rate
    assert [proposal.continues for proposal in found[:10]] == [None] * 10


def test_an_interrupted_promotion_continues_the_same_run(tmp_path: Path) -> None:
    space = nine_epochs()
    trial_storage = on_disk(tmp_path)
    engine = KerasTunerEngine(trial_storage, space)
    proposals(engine, trial_storage, 10)
    promoted = asked(engine, trial_storage)
    assert promoted.continues is not None

    again = KerasTunerEngine(on_disk(tmp_path), space).ask()

    assert again == replace(promoted, attempt=2, supersedes=run_id(promoted))


def test_hyperband_waits_where_only_an_end_brings_more() -> None:
    trial_storage, space = in_memory(), nine_epochs("categorical")
    engine = KerasTunerEngine(trial_storage, space)
    running = [asked(engine, trial_storage) for _ in range(3)]
    assert isinstance(engine.ask(), Wait)

    for proposal in running:
        engine.tell(completed(proposal, 0.5))

    # A rung of nine cannot be filled from three configurations.
    assert isinstance(engine.ask(), Exhausted)


def test_a_trial_that_is_given_up_keeps_nothing_waiting(tmp_path: Path) -> None:
    space = nine_epochs("categorical")
    trial_storage = on_disk(tmp_path)
    engine = KerasTunerEngine(trial_storage, space)
    for proposal in (asked(engine, trial_storage), asked(engine, trial_storage)):
        engine.tell(completed(proposal, 0.5))
    for _ in range(MAX_RETRIES + 1):
        proposal = asked(engine, trial_storage)
        trial_storage.requeue(proposal.number)

    assert trial_storage.records()[proposal.number].state is TrialState.FAILED
    assert isinstance(engine.ask(), Exhausted)


class KilledError(Exception):
    """The end of the process."""


@pytest.mark.parametrize("sampler", ["hyperband", "bayesian", "random", "grid"])
def test_a_kill_before_a_proposal_is_written_down_costs_nothing(
    sampler: KerasTunerSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KilledError

    space = nine_epochs("mixed" if sampler != "grid" else "grid")
    storage = memory_storage()
    trial_storage = TrialStorage(storage, "study")
    proposals(KerasTunerEngine(trial_storage, space, sampler), trial_storage, 3)
    dying = TrialStorage(storage, "study")
    monkeypatch.setattr(dying, "add", die)
    with pytest.raises(KilledError):
        KerasTunerEngine(dying, space, sampler).ask()
    never = in_memory()
    undisturbed = proposals(KerasTunerEngine(never, space, sampler), never, 6)

    resumed = proposals(KerasTunerEngine(trial_storage, space, sampler), trial_storage, 3)

    assert [proposal.hyperparameters for proposal in resumed] == [
        proposal.hyperparameters for proposal in undisturbed[3:]
    ]
    assert [proposal.number for proposal in resumed] == [3, 4, 5]


def test_a_bayesian_study_keeps_its_model_over_a_kill(tmp_path: Path) -> None:
    space = canonical("float_log")  # Three trials of one dimension, and the model takes over.

    def overlapping(
        engine: Engine, trial_storage: TrialStorage, running: list[TrialSpec], count: int
    ) -> list[ParamValue]:
        """Ask one trial ahead, as the coordinator does, so that the model has to predict running trials."""
        rates: list[ParamValue] = []
        for _ in range(count):
            running.append(asked(engine, trial_storage))
            rates.append(running[-1].hyperparameters.learning_rate)
            if len(running) > 1:
                proposal = running.pop(0)
                engine.tell(
                    completed(proposal, 0.9 - 0.05 * (math.log10(proposal.hyperparameters.learning_rate) + 3) ** 2)
                )
        return rates

    never = in_memory()
    undisturbed = overlapping(KerasTunerEngine(never, space, "bayesian"), never, [], 8)
    first, second = on_disk(tmp_path), None
    before = overlapping(KerasTunerEngine(first, space, "bayesian"), first, [], 6)
    second = on_disk(tmp_path)
    after = overlapping(KerasTunerEngine(second, space, "bayesian"), second, [], 3)

    assert before == undisturbed[:6]
    assert after == undisturbed[5:]


def test_a_grid_continues_beside_a_requeued_trial(tmp_path: Path) -> None:
    space = canonical("grid")
    trial_storage = on_disk(tmp_path)
    engine = KerasTunerEngine(trial_storage, space, "grid")
    proposals(engine, trial_storage, 2)
    interrupted = asked(engine, trial_storage)

    resumed = on_disk(tmp_path)
    engine = KerasTunerEngine(resumed, space, "grid")

    assert asked(engine, resumed).hyperparameters == interrupted.hyperparameters
    assert asked(engine, resumed).number == interrupted.number + 1


def test_the_bayesian_model_learns_from_the_trials_of_others() -> None:
    space = canonical("float_log")

    def fifth(slope: float) -> ParamValue:
        trial_storage = in_memory()
        points = tuple({"learning_rate": rate} for rate in (1e-4, 1e-3, 1e-2))
        engine = KerasTunerEngine(trial_storage, space, "bayesian", try_points=points)
        for _ in range(4):
            proposal = asked(engine, trial_storage)
            engine.tell(completed(proposal, 0.5 + slope * math.log10(proposal.hyperparameters.learning_rate)))
        return asked(engine, trial_storage).hyperparameters.learning_rate

    # What is drawn at random, before the model takes over, depends on no objective.
    assert fifth(0.05) != fifth(-0.05)


def test_a_study_that_changes_its_engine_repeats_nothing() -> None:
    trial_storage, space = in_memory(), nine_epochs("grid")
    engines: list[Engine] = []
    for make in (
        lambda: OptunaEngine(trial_storage, space, "random"),
        lambda: KerasTunerEngine(trial_storage, space, "hyperband"),
        lambda: KerasTunerEngine(trial_storage, space, "random"),
        lambda: KerasTunerEngine(trial_storage, space, "hyperband"),
        lambda: OptunaEngine(trial_storage, space, "tpe"),
    ):
        engines.append(make())
        assert len(proposals(engines[-1], trial_storage, 5)) == 5

    points = [tuple(sorted(record.params.items())) for record in trial_storage.records()]
    assert len(points) == len(set(points)) == 25


def test_a_failed_trial_is_never_promoted() -> None:
    trial_storage, space = in_memory(), nine_epochs()
    engine = KerasTunerEngine(trial_storage, space)
    engine.tell(completed(asked(engine, trial_storage), 0.5))
    for place in range(9):
        proposal = asked(engine, trial_storage)
        if place < 2:
            engine.tell(TrialResult(proposal.number, proposal.attempt, TrialState.FAILED, 0))
        else:
            engine.tell(completed(proposal, place / 10))

    promoted = asked(engine, trial_storage)

    assert promoted.continues is not None
    assert promoted.continues.number == 9


@pytest.mark.parametrize("sampler", ["hyperband", "bayesian", "random", "grid"])
def test_an_oracle_prints_nothing_and_writes_no_file(
    sampler: KerasTunerSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trial_storage, space = in_memory(), nine_epochs("grid")

    found = proposals(KerasTunerEngine(trial_storage, space, sampler), trial_storage, 5)

    assert len(found) == 5
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_rungs_keep_two_workers_busy_and_runs_name_their_origin() -> None:
    trial_storage, space, tracker, executor = (
        on_one_connection(),
        nine_epochs(),
        MemoryTracker(),
        MemoryExecutor(slots=2),
    )
    observer = RecordingObserver()
    engine = KerasTunerEngine(trial_storage, space)
    proposals = Proposals(engine, tracker, observer, Precision.FLOAT32, trials=14)

    Loop(proposals, executor, observer).run()

    assert [record.state for record in trial_storage.records()] == [TrialState.COMPLETE] * 14
    assert executor.most_at_once == 2
    promoted = [spec for spec in executor.submitted if spec.continues is not None]
    assert promoted
    for spec in promoted:
        assert spec.continues is not None
        tags = tracker.runs[spec.run_id].tags
        assert tags["continues_run"] == spec.continues.run_id == f"run-{tags['continues_trial']}-1"
        first, last = spec.continues.epochs + 1, spec.hyperparameters.epochs
        assert sorted(trial_storage.records()[spec.number].curve) == list(range(first, last + 1))


def on_one_connection() -> TrialStorage:
    return TrialStorage(memory_storage(), "study")
