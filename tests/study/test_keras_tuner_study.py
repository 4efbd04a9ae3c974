"""A study that KerasTuner's Hyperband leads, with real workers and both real stores."""

from dataclasses import dataclass

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from fashion_study.config import StudyConfig
from fashion_study.store.trials import TrialRecord
from fashion_study.study.run import run_study
from fashion_study.testing.memory import RecordingObserver
from fashion_study.trial import TrialState

# It starts workers twice.
pytestmark = pytest.mark.faults


@dataclass(frozen=True)
class Finished:
    """What two runs of one study left."""

    records: dict[int, TrialRecord]
    runs: dict[int, Run]
    lines: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    store = tmp_path_factory.mktemp("store") / "mlruns"

    def run_to(trials: int) -> tuple[dict[int, TrialRecord], MlflowClient, list[str]]:
        observer = RecordingObserver()
        config = StudyConfig(
            space="smoke",
            dataset="digits",
            precision="float32",
            engine="keras-tuner",
            trials=trials,
            workers=1,
            finalists=0,
            store=store,
        )
        result = run_study(config, observer)
        return {record.number: record for record in result.records}, result.store.client(), observer.notes

    # The baseline, a rung of three for one epoch, and one of the next bracket, since that rung was not done when it was
    # asked for. In another process's place: the best of the rung for three epochs.
    run_to(5)
    records, client, lines = run_to(6)
    return Finished(records, {number: client.get_run(str(record.run_id)) for number, record in records.items()}, lines)


def test_a_promoted_trial_continues_the_best_of_its_rung(finished: Finished) -> None:
    rung = [finished.records[number] for number in (1, 2, 3)]
    best = max(rung, key=lambda record: (record.objective or 0.0, -record.number))
    promoted = finished.records[5]

    assert promoted.state is TrialState.COMPLETE
    assert promoted.params == best.params | {"epochs": 3}
    assert list(promoted.curve) == [2, 3]
    tags = finished.runs[5].data.tags
    assert (tags["continues_trial"], tags["continues_run"]) == (str(best.number), best.run_id)
    assert tags["continued_after_epoch"] == "1"
    assert "continuation_lost" not in tags


def test_a_resumed_study_goes_on_in_its_engines_rungs(finished: Finished) -> None:
    assert [finished.records[number].params["epochs"] for number in range(6)] == [2, 1, 1, 1, 3, 3]
    assert any("keras-tuner hyperband" in line for line in finished.lines)
