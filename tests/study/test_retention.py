"""The promises about model files that make room: on a real store, with real models that nobody had to train."""

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from optuna.distributions import FloatDistribution

from fashion_study import StudyConfig, run_study
from fashion_study.store.store import open_store
from fashion_study.store.trials import TrialStorage
from fashion_study.study.retention import REMOVED, ModelKeeper
from fashion_study.study.run import StudyResult
from fashion_study.testing.memory import RecordingObserver
from fashion_study.tracking.search import pending_models
from fashion_study.trial import FailReason, TrialResult, TrialSpec, TrialState
from tests.support.model_store import ModelStore, trained

SPACE = {"learning_rate": FloatDistribution(0.0, 1.0)}


class Bench:
    """A study in a real store, to which trials are added as if they had been trained."""

    def __init__(self, store: ModelStore, name: str) -> None:
        self.store = store
        self.client = store.client
        self.trial_storage = TrialStorage(store.store.open_optuna_storage(), name)
        self.study_run = store.study(name)
        self.runs: dict[int, str] = {}

    def add(self, objective: float | None) -> int:
        """Add a trial, complete with this objective or failed, and return its number."""
        number = self.trial_storage.add({"learning_rate": len(self.trial_storage.trials()) / 100}, SPACE).number
        self.runs[number] = self.store.trial(self.study_run, number, trained(0))
        self.trial_storage.begin_attempt(number, 1, self.runs[number])
        state = TrialState.FAILED if objective is None else TrialState.COMPLETE
        reason = FailReason.ERROR if objective is None else None
        self.trial_storage.close(TrialResult(number, 1, state, 1, objective, reason))
        return number

    def keeper(self, keep: int | None) -> ModelKeeper:
        self.notes: list[str] = []
        return ModelKeeper(self.client, self.trial_storage, keep, self.store.root / "artifacts", self.notes.append)

    def with_files(self) -> set[int]:
        """Return the trials whose model files lie on disk."""
        folders = {path.name for path in (self.store.root / "artifacts").rglob("m-*")}
        return {number for number in self.runs if self.model_id(number) in folders}

    def said_to_be_gone(self) -> set[int]:
        """Return the trials whose run says that its model was taken away."""
        return {number for number, run_id in self.runs.items() if REMOVED in self.client.get_run(run_id).data.tags}

    def model_id(self, number: int) -> str:
        return str(self.client.get_run(self.runs[number]).data.tags["model_uri"]).removeprefix("models:/")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    return ModelStore(tmp_path_factory.mktemp("models") / "store")


@pytest.fixture
def bench(store: ModelStore, request: pytest.FixtureRequest) -> Bench:
    return Bench(store, request.node.name)


def test_the_best_models_stay_as_the_study_goes(bench: Bench) -> None:
    keeper = bench.keeper(2)
    kept = []
    for objective in (0.1, 0.5, 0.4, 0.6, 0.3):
        bench.add(objective)
        keeper.sweep()
        kept.append(bench.with_files())

    # Trial 0 is the baseline.
    assert kept == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 3}, {0, 1, 3}]
    assert bench.said_to_be_gone() == {2, 4}
    assert bench.notes == []


def test_a_trial_without_model_says_why_and_keeps_the_rest(bench: Bench) -> None:
    for objective in (0.5, 0.1, 0.6):
        bench.add(objective)
    before = bench.client.get_run(bench.runs[1]).data.tags

    bench.keeper(1).sweep()

    after = bench.client.get_run(bench.runs[1])
    assert after.data.tags == before | {REMOVED: "not among the best 1 trials (--keep-models 1)"}
    assert [artifact.path for artifact in bench.client.list_artifacts(bench.runs[1])] == ["confusion_matrix.json"]
    with pytest.raises(MlflowException, match="not found"):
        bench.client.get_logged_model(bench.model_id(1))


def test_by_default_everything_stays(bench: Bench) -> None:
    for objective in (0.5, 0.1, 0.6):
        bench.add(objective)

    bench.keeper(None).sweep()

    assert bench.with_files() == {0, 1, 2}


def test_registered_models_stay_whatever_their_rank(bench: Bench) -> None:
    for objective in (0.5, 0.1, 0.2, 0.6):
        bench.add(objective)
    for number in (1, 2):
        bench.store.register(bench.runs[number])

    bench.keeper(1).sweep()

    assert bench.with_files() == {0, 1, 2, 3}
    assert bench.said_to_be_gone() == set()
    assert bench.store.aliases() == {"challenger": 2}


def test_a_trial_without_a_model_is_in_nobodys_way(bench: Bench) -> None:
    for objective in (0.5, None, 0.6):
        bench.add(objective)
    bench.client.delete_tag(bench.runs[0], "model_uri")
    bench.client.delete_tag(bench.runs[2], "model_uri")

    bench.keeper(1).sweep()

    assert bench.said_to_be_gone() == set()


@pytest.mark.parametrize("moment", ["delete_artifacts", "delete_logged_model"])
def test_what_a_kill_left_half_done_is_done_by_the_next_sweep(
    moment: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for objective in (0.5, 0.1, 0.6):
        bench.add(objective)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalArtifactRepository if moment == "delete_artifacts" else bench.client, moment, kill)
        with pytest.raises(KeyboardInterrupt):
            bench.keeper(1).sweep()
    # At no moment is a model gone without a word.
    assert bench.said_to_be_gone() == {1}

    bench.keeper(1).sweep()

    assert bench.with_files() == {0, 2}
    with pytest.raises(MlflowException, match="not found"):
        bench.client.get_logged_model(bench.model_id(1))


def test_files_that_cannot_be_taken_away_stay_with_a_word(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for objective in (0.5, 0.1, 0.6):
        bench.add(objective)

    def refuse(*_: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", refuse)
    keeper = bench.keeper(1)
    keeper.sweep()
    keeper.sweep()

    assert bench.notes == ["the model files of trial 001 cannot be taken away, and stay: read-only file system"]
    assert bench.said_to_be_gone() == set()
    assert bench.client.get_logged_model(bench.model_id(1)).model_id == bench.model_id(1)


class AccidentProne(RecordingObserver):
    """Watches a study whose worker leaves a model half-written in its second trial, as one does that dies there."""

    def __init__(self, client: MlflowClient) -> None:
        super().__init__()
        self._client = client

    def trial_started(self, spec: TrialSpec) -> None:
        super().trial_started(spec)
        if spec.key == (1, 1):
            experiment = self._client.get_run(spec.run_id).info.experiment_id
            self._client.create_logged_model(experiment, name="model", source_run_id=spec.run_id)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    asked = {"space": "smoke", "dataset": "digits", "precision": "float32", "workers": 1, "trials": 4}
    limits = {"trial_timeout": 250.0, "worker_memory": 16 * 2**30, "keep_models": 1}
    finalists = {"pruner": "none", "finalists": 1, "repeats": 1}
    store = tmp_path_factory.mktemp("study") / "store"
    observer = AccidentProne(open_store(store).client())
    return run_study(StudyConfig(**asked, **limits, **finalists, store=store), observer)


def test_a_study_keeps_best_baseline_and_registered_models(ended: StudyResult) -> None:
    client = ended.store.client()
    assert ended.best is not None
    kept = {record.number for record in ended.records if REMOVED not in client.get_run(str(record.run_id)).data.tags}
    assert kept == {0, ended.best.number}
    assert len(list((ended.store.root / "artifacts").rglob("model.keras"))) == len(kept) + 1
    assert ended.version is not None


def test_a_study_that_has_ended_leaves_no_model_half_written(ended: StudyResult) -> None:
    client = ended.store.client()
    assert ended.experiment_id is not None
    models = client.search_logged_models([ended.experiment_id])
    assert Counter(model.status.name for model in models)["FAILED"] == 1
    assert not list(pending_models(client, [ended.experiment_id], lambda _: True))


def test_the_study_s_run_says_what_limits_it_had(ended: StudyResult) -> None:
    tags = ended.store.client().get_run(str(ended.run_id)).data.tags
    wanted = {"trial_timeout": "250.0", "worker_memory": str(16 * 2**30), "keep_models": "1"}
    assert {name: tags[name] for name in wanted} == wanted
    assert "--trial-timeout 250s --workers 1 --worker-memory 16G" in tags["command"]


def test_the_seconds_of_a_trial_hold_its_training(ended: StudyResult) -> None:
    client = ended.store.client()
    for record in ended.records:
        assert record.seconds is not None
        assert record.seconds >= client.get_run(str(record.run_id)).data.metrics["train_seconds"]


@pytest.mark.parametrize("form", ["file://{}", "file://localhost{}", "{}"])
def test_nothing_outside_the_store_is_deleted(form: str, bench: Bench, tmp_path: Path) -> None:
    for objective in (0.5, 0.1, 0.6):
        bench.add(objective)
    victim = tmp_path / "models" / bench.model_id(1) / "artifacts"
    victim.mkdir(parents=True)
    with closing(sqlite3.connect(bench.store.root / "mlflow.db")) as database, database:
        database.execute(
            "UPDATE logged_models SET artifact_location = ? WHERE model_id = ?",
            (form.format(victim), bench.model_id(1)),
        )

    bench.keeper(1).sweep()

    assert victim.is_dir()
    (note,) = bench.notes
    assert "the model files of trial 001 stay" in note
    assert bench.said_to_be_gone() == set()


@pytest.mark.parametrize("for_good", [False, True])
def test_a_run_that_somebody_has_deleted_stays_as_it_is(for_good: bool, bench: Bench) -> None:
    for objective in (0.5, 0.1, 0.6):
        bench.add(objective)
    (folder,) = (bench.store.root / "artifacts").rglob(bench.model_id(1))
    bench.client.delete_run(bench.runs[1])
    if for_good:
        bench.client._tracking_client.store._hard_delete_run(bench.runs[1])

    bench.keeper(1).sweep()

    assert folder.is_dir()
    assert bench.notes == []
