"""The promises of a study beside Optuna's tools and MLflow's UI: what they change neither blocks nor decides it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
import pytest
from mlflow import MlflowClient
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, create_trial

import fashion_study.study.run as study_module
from fashion_study.config import StudyConfig
from fashion_study.doctor.check import check_store
from fashion_study.errors import BadInputError, StoreError
from fashion_study.finding import Kind
from fashion_study.store.store import Store, open_store
from fashion_study.study.run import StudyResult, run_study
from fashion_study.testing.memory import MemoryExecutor, RecordingObserver
from fashion_study.trial import EpochReport, TrialSpec, TrialState

FOREIGN = create_trial(value=0.999, params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)})
ELSEWHERE = "trials of other programs, not counted"


class Started:
    """A study that is trained by a toy, and that other programs change before it goes on."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.executor, self.observer = MemoryExecutor(), RecordingObserver()

    def go_on(self, trials: int, *, registers: bool = False, **options: object) -> StudyResult:
        self.executor.is_stopped = False
        asked = {"space": "smoke", "dataset": "digits", "workers": 1, "precision": "float32", "finalists": 0, **options}
        config = StudyConfig.model_validate({**asked, "study": self.name, "store": self.store.root, "trials": trials})
        return run_study(config, self.observer, registers=registers)

    @property
    def optuna(self) -> optuna.Study:
        """Open the study as another program does."""
        return optuna.load_study(study_name=self.name, storage=f"sqlite:///{self.store.trials_file}")

    def trial(self, number: int) -> FrozenTrial:
        return self.optuna.trials[number]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def new(store: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Started:
    study = Started(store, request.node.name.replace("[", "-").replace("]", ""))

    @contextmanager
    def toy(*_: object) -> Iterator[MemoryExecutor]:
        yield study.executor

    monkeypatch.setattr(study_module, "open_executor", toy)
    monkeypatch.setattr("fashion_study.study.figures.study_figures", lambda _: ())
    return study


@pytest.fixture
def study(new: Started) -> Started:
    new.go_on(2)
    return new


def test_an_enqueued_trial_is_completed_and_tried(study: Started) -> None:
    study.optuna.enqueue_trial({"learning_rate": 0.002})

    done = study.go_on(3)

    assert [spec.number for spec in study.executor.submitted] == [0, 1, 2]
    assert study.trial(2).params == study.trial(0).params | {"learning_rate": 0.002}
    assert study.trial(2).params in [record.params for record in done.records]
    assert done.counted == 3


def test_what_the_space_does_not_allow_is_put_aside(study: Started) -> None:
    unwanted: dict[str, dict[str, object]] = {
        "learning_rate: found 7.0; allowed: a number from": {"learning_rate": 7.0},
        "learning_rate: found None": {"learning_rate": None},
        "unknown parameter 'lr'": {"lr": 0.1},
        "filters_1: found '8', a text (a number has no quotes": {"filters_1": "8"},
        "optimizer is fixed at": {"optimizer": "adam"},
        "trial 000 has the same parameters": {},
    }
    for params in unwanted.values():
        study.optuna.enqueue_trial(params)

    done = study.go_on(3)

    assert done.counted == 3
    assert [spec.number for spec in study.executor.submitted] == [0, 1, 8]
    put_aside = [line for line in study.observer.notes if "is put aside" in line]
    for number, (line, reason) in enumerate(zip(put_aside, unwanted, strict=True), start=2):
        assert f"trial {number:03d}, which another program has enqueued, is put aside: {reason}" in line
    numbers = "002, 003, 004, 005, 006, 007"
    assert f"Study {study.name}: {ELSEWHERE}: {numbers}." in check_store(study.store.root).notes


def test_a_trial_that_optuna_has_asked_for_blocks_nothing(study: Started) -> None:
    study.optuna.ask({"x": FloatDistribution(0, 1)})

    assert study.go_on(3).counted == 3


def test_a_result_from_elsewhere_decides_nothing(study: Started) -> None:
    study.optuna.add_trial(FOREIGN)

    done = study.go_on(3)

    assert done.counted == 3
    assert [record.number for record in done.records if record.state is TrialState.COMPLETE] != []
    assert 2 not in [record.number for record in done.records]
    assert done.best is not None
    assert done.best.value != FOREIGN.value
    assert f"{ELSEWHERE}: 002" in study.observer.notes


def test_copied_trials_and_their_runs_stay_with_their_own_study(study: Started) -> None:
    other = Started(study.store, f"{study.name}-other")
    other.go_on(2)
    other.optuna.add_trials(study.optuna.trials)
    other.optuna.enqueue_trial({"learning_rate": 0.003}, user_attrs=study.trial(1).user_attrs)
    client: MlflowClient = study.store.client()
    runs = [trial.user_attrs["run_id"] for trial in study.optuna.trials]
    before = [client.get_run(run_id).data.tags["study"] for run_id in runs]

    done = other.go_on(3)
    check_store(study.store.root, fix=True)

    assert (done.counted, max(record.number for record in done.records)) == (3, 5)
    assert f"{ELSEWHERE}: 002, 003, 004" in other.observer.notes
    assert [client.get_run(run_id).data.tags["study"] for run_id in runs] == before


def test_what_is_enqueued_while_a_study_runs_is_tried_too(new: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    def enqueue(spec: TrialSpec) -> None:
        if spec.number == 1:
            new.optuna.enqueue_trial({"learning_rate": 0.002})

    monkeypatch.setattr(new.observer, "trial_started", enqueue)

    done = new.go_on(5)

    assert sorted(record.number for record in done.records) == [0, 1, 2, 3, 4]
    assert 0.002 in [record.params["learning_rate"] for record in done.records]


def test_a_running_trial_that_another_program_ends_goes_on(new: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(spec: TrialSpec, report: EpochReport) -> None:
        if report.epoch == 1:
            new.optuna.tell(spec.number, 0.999)

    monkeypatch.setattr(new.observer, "epoch_done", end)

    done = new.go_on(1)

    assert done.best is not None
    assert done.best.objective == new.trial(0).value != FOREIGN.value


def _minimize(study: Started) -> None:
    optuna.create_study(study_name=study.name, storage=f"sqlite:///{study.store.trials_file}")


def _optimize_two(study: Started) -> None:
    address = f"sqlite:///{study.store.trials_file}"
    optuna.create_study(study_name=study.name, storage=address, directions=["maximize", "minimize"])


def _enqueue_first(study: Started) -> None:
    address = f"sqlite:///{study.store.trials_file}"
    optuna.create_study(study_name=study.name, storage=address, direction="maximize").enqueue_trial({})


def _copy(study: Started) -> None:
    original = Started(study.store, f"{study.name}-original")
    original.go_on(1)
    address = f"sqlite:///{study.store.trials_file}"
    optuna.copy_study(from_study_name=original.name, from_storage=address, to_storage=address, to_study_name=study.name)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (_minimize, "to minimize a value"),
        (_optimize_two, "to minimize a value or to optimize several"),
        (_enqueue_first, "has trials already"),
        (_copy, "is a copy of '.*-original'"),
    ],
    ids=["minimizes", "two-values", "has-trials", "copy"],
)
def test_another_program_s_study_is_not_taken_over(make: Callable[[Started], None], found: str, new: Started) -> None:
    make(new)
    before = new.optuna.trials

    with pytest.raises(BadInputError, match=found):
        new.go_on(2)

    assert new.optuna.trials == before


def test_a_study_stays_in_its_experiment_when_that_is_renamed(study: Started) -> None:
    client: MlflowClient = study.store.client()
    experiment = client.get_run(study.optuna.user_attrs["run_id"]).info.experiment_id
    client.rename_experiment(experiment, "mine")
    try:
        study.go_on(3, finalists=1, repeats=2)
        study.go_on(3, finalists=1, repeats=2)
        assert client.get_experiment_by_name("digits") is None
        assert len([spec for spec in study.executor.submitted if spec.repeat]) == 2
    finally:
        client.rename_experiment(experiment, "digits")


def test_a_deleted_experiment_is_named_and_the_doctor_restores_it(study: Started) -> None:
    client: MlflowClient = study.store.client()
    experiment = client.get_run(study.optuna.user_attrs["run_id"]).info.experiment_id
    client.delete_experiment(experiment)

    with pytest.raises(StoreError, match=f"'digits' .id {experiment}. .* mlflow experiments restore --experiment-id"):
        study.go_on(3)
    restored = [found for found in check_store(study.store.root, fix=True).findings if found.done == "it is restored"]

    assert {found.kind for found in restored} == {Kind.DELETED_EXPERIMENT}
    assert study.go_on(3).counted == 3


def test_a_repeat_s_tags_may_be_deleted_and_the_doctor_restores_them(study: Started) -> None:
    client: MlflowClient = study.store.client()
    tags = ("trial", "repeat", "kind", "mlflow.parentRunId", "study", "attempt")
    runs = study.go_on(2, finalists=1, repeats=len(tags)).finalists[0].run_ids
    before = [client.get_run(run_id).data.tags[tag] for run_id, tag in zip(runs, tags, strict=True)]
    for run_id, tag in zip(runs, tags, strict=True):
        client.delete_tag(run_id, tag)

    assert Kind.ORPHAN not in [found.kind for found in check_store(study.store.root).findings]
    check_store(study.store.root, fix=True)

    after = [client.get_run(run_id).data.tags.get(tag) for run_id, tag in zip(runs, tags, strict=True)]
    assert after == [*before[:-1], None]  # Which attempt it was, nothing else knows; and nothing asks.
    assert len(study.go_on(2, finalists=1, repeats=len(tags) + 1).finalists[0].run_ids) == len(tags) + 1
    assert len([spec for spec in study.executor.submitted if spec.repeat]) == len(tags) + 1


def test_a_study_goes_on_beside_repeats_without_their_tags(study: Started) -> None:
    client: MlflowClient = study.store.client()
    tags = ("trial", "repeat", "kind", "mlflow.parentRunId", "study", "state", "attempt")
    runs = study.go_on(2, finalists=1, repeats=len(tags)).finalists[0].run_ids
    for run_id, tag in zip(runs, tags, strict=True):
        client.delete_tag(run_id, tag)
    client.set_tag(runs[-1], "trial", "99")

    assert len(study.go_on(2, finalists=1, repeats=len(tags)).finalists[0].run_ids) == len(tags)


def test_a_winner_without_the_tags_of_its_model_lets_the_study_end(study: Started) -> None:
    done = study.go_on(3, registers=True)

    assert (done.counted, done.version) == (3, None)
    assert any("no challenger is registered: the tag model_uri or" in line for line in study.observer.notes)
