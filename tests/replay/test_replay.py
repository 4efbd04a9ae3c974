"""The promises of a replay: a toy study in a real store, trained again by a real worker process without TensorFlow."""

import json
import math
import os
import re
import sqlite3
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution
from rich.console import Console

from fashion_study.config import StudyConfig
from fashion_study.data.catalog import load_dataset, locate
from fashion_study.errors import BadInputError, DataError, StoreError, StudyError
from fashion_study.executors import local
from fashion_study.replay.comparison import Replay, show_replay
from fashion_study.replay.recorded import read_recorded
from fashion_study.replay.replay import replay
from fashion_study.replay.request import ReplayConfig
from fashion_study.store.store import Store
from fashion_study.store.trials import TrialStorage
from fashion_study.study.plan import plan_study
from fashion_study.study.progress import Observer
from fashion_study.testing.training import toy_report, toy_result
from fashion_study.tracking.runs import StudyRuns
from fashion_study.trial import (
    EarlierTrial,
    FailReason,
    Hyperparameters,
    Precision,
    TrialSpec,
    TrialState,
    trial_seed,
)
from tests.support.empty_store import empty_store
from tests.support.untouched import read_only

ROOT = Path(__file__).parents[2]
EPOCHS = 3
DISTRIBUTIONS = {"learning_rate": FloatDistribution(1e-5, 1.0)}
# A float that no shorter one stands for.
RATE = 0.1 + 0.2


class Desk:
    """A study whose trials are what the toy worker makes of them."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.client = store.client()
        config = StudyConfig(space="smoke", dataset="digits", workers=2, study=name)
        self.tracker = StudyRuns(self.client, store.experiment_id(self.client, "digits"))
        metadata = plan_study(config).metadata(Precision.FLOAT32, config.trials)
        self.run_id = self.tracker.open_study(metadata, load_dataset(locate("digits")))
        self.trial_storage = TrialStorage(store.open_optuna_storage(), name)

    def begin(self, repeat: int = 0, epochs: int = EPOCHS) -> TrialSpec:
        """Open a trial, or a repeat of the first one."""
        number = 0 if repeat else self.trial_storage.add({"learning_rate": RATE}, DISTRIBUTIONS).number
        hyperparameters = Hyperparameters(learning_rate=RATE, epochs=epochs)
        seed = trial_seed(0, number, repeat)
        tags = {"seed": str(seed), "precision": "float32"}
        run_id = self.tracker.open_trial(number, 1, hyperparameters.model_dump(), tags, repeat)
        if not repeat:
            self.trial_storage.begin_attempt(number, 1, run_id)
        return TrialSpec(number, 1, hyperparameters, seed, run_id, Precision.FLOAT32, repeat)

    def end(
        self,
        spec: TrialSpec,
        state: TrialState = TrialState.COMPLETE,
        epochs: int = EPOCHS,
        reason: FailReason | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> TrialSpec:
        """End it as the toy worker ends it."""
        for epoch in range(1, epochs + 1):
            self.tracker.log_epochs(spec.run_id, toy_report(spec, epoch))
        result = toy_result(spec, state, epochs, reason)
        metrics = {"train_seconds": 1.5} | ({} if result.objective is None else {"objective": result.objective})
        result = replace(result, metrics=metrics, tags=dict(tags or {"threads": "1"}))
        self.tracker.close_trial(spec, result)
        if not spec.repeat:
            self.trial_storage.close(result)
        return spec

    def replay(self, trial: object, study: str | None = None) -> Replay:
        return replay(ReplayConfig(str(trial), study), self.store, Observer())

    def alter(self, table: str, key: str, value: object, where: str = "") -> None:
        """Change what MLflow's database says of this study's runs."""
        change = f"update {table} set value = ? where key = ? and run_uuid = ? {where}"
        with closing(sqlite3.connect(self.store.root / "mlflow.db")) as database, database:
            changed = sum(database.execute(change, (value, key, run)).rowcount for run in (self.run_id, *self.runs()))
        assert changed == 1

    def runs(self) -> list[str]:
        """Return the runs of the study's trials."""
        return [str(record.run_id) for record in self.trial_storage.records()]

    def content(self) -> tuple[list[str], list[str]]:
        """Return every row of both databases, and the name and size of every other file."""
        rows = []
        for name in ("mlflow.db", "optuna.db"):
            with closing(sqlite3.connect(self.store.root / name)) as database:
                rows += list(database.iterdump())
        files = (path for path in self.store.root.rglob("*") if path.is_file() and ".db" not in path.name)
        return rows, sorted(f"{path} {path.stat().st_size}" for path in files)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return empty_store(tmp_path_factory.mktemp("replay") / "store")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Give each test a study of its own in the one store."""
    return re.sub(r"\W", "-", request.node.name)[:90]


@pytest.fixture
def desk(store: Store, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(local, "WORKER_MODULE", "tests.executors.toy_worker")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Desk(store, name)


def simulate(monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    monkeypatch.setenv("TOY_OUTCOMES", json.dumps({"0/1": outcome}))


def shown(result: Replay) -> str:
    out = StringIO()
    show_replay(result, Console(file=out, width=200))
    return out.getvalue()


def differing(result: Replay) -> list[tuple[int | None, str]]:
    return [(line.epoch, line.name) for line in result.lines if not line.is_same]


def test_a_complete_trial_is_the_same_and_the_store_is_as_it_was(desk: Desk, name: str, tmp_path: Path) -> None:
    desk.end(desk.begin())
    before = desk.content()

    result = desk.replay(0)

    assert differing(result) == []
    assert sorted({line.epoch for line in result.lines if line.epoch is not None}) == [1, 2, 3]
    assert len(result.lines) == 4 * EPOCHS + 2
    assert f"Trial 000 of study {name} is the same to the bit: 14 of 14 figures." in shown(result)
    assert desk.content() == before
    assert list(tmp_path.iterdir()) == []


def test_a_trial_of_a_read_only_store_is_replayed(desk: Desk) -> None:
    desk.end(desk.begin())
    with read_only(desk.store.root):
        assert differing(desk.replay(0)) == []


def test_a_figure_that_is_off_by_one_bit_is_found(desk: Desk) -> None:
    spec = desk.end(desk.begin())
    other = math.nextafter(toy_report(spec, 2).val_loss, 1)
    desk.alter("metrics", "val_loss", other, "and step = 2")

    result = desk.replay(0)

    assert differing(result) == [(2, "val_loss")]
    assert (
        f"is not the same: 13 of 14 figures are. The first that differs, in epoch 2, is val_loss: {other!r}"
        in shown(result)
    )
    assert re.search(r"epoch 2 .*no: val_loss", shown(result))


def test_a_pruned_trial_is_trained_up_to_where_it_was_pruned(desk: Desk) -> None:
    desk.end(desk.begin(epochs=9), TrialState.PRUNED, 2)

    result = desk.replay(0)

    assert differing(result) == []
    (end,) = (line for line in result.lines if line.name == "end")
    assert end.again == "pruned after 2 epochs"


def test_a_diverged_trial_diverges_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.end(desk.begin(), TrialState.FAILED, 1, FailReason.DIVERGED)
    simulate(monkeypatch, "diverged")

    result = desk.replay(0)

    assert differing(result) == []
    (end,) = (line for line in result.lines if line.name == "end")
    assert end.again == "diverged after 1 epoch"


def test_a_diverged_trial_that_goes_on_ends_one_epoch_later(desk: Desk) -> None:
    desk.end(desk.begin(epochs=9), TrialState.FAILED, 1, FailReason.DIVERGED)

    result = desk.replay(0)

    assert {epoch for epoch, _ in differing(result)} == {2, None}
    (end,) = (line for line in result.lines if line.name == "end")
    assert (end.recorded, end.again) == ("diverged after 1 epoch", "pruned after 2 epochs")


def test_a_repeat_is_named_by_how_the_id_of_its_run_begins(desk: Desk, name: str) -> None:
    desk.end(desk.begin())
    repeat = desk.end(desk.begin(repeat=2))

    result = desk.replay(repeat.run_id[:12])

    assert result.label == f"trial 000 repeat 2 of study {name}"
    assert differing(result) == []


def test_a_number_means_the_latest_study_unless_one_is_named(desk: Desk, name: str) -> None:
    earlier = desk.end(desk.begin(epochs=1), epochs=1)
    later = Desk(desk.store, f"later-{name}")
    later.end(later.begin(epochs=1), epochs=1)

    assert desk.replay(0).label == f"trial 000 of study later-{name}"
    assert desk.replay(0, name).label == f"trial 000 of study {name}"
    with pytest.raises(BadInputError, match=f"belongs to study '{name}', not to 'later-{name}'"):
        desk.replay(earlier.run_id, f"later-{name}")


def test_differences_and_what_was_not_recorded_are_listed(desk: Desk) -> None:
    spec = desk.begin()
    desk.end(spec, tags={"threads": "4", "cpu": "a better one", "library_variables": "TF_XLA_FLAGS=--a"})
    desk.client.set_tag(spec.run_id, "host", "elsewhere")

    said = shown(desk.replay(0))

    assert "Different here: host, elsewhere then, " in said
    assert "Different here: processor, a better one then, unknown now." in said
    assert "Different here: variables that TensorFlow and its libraries read, TF_XLA_FLAGS=--a then, " in said
    assert "commit of the code" not in said
    assert "is the same to the bit" in said


def test_a_run_without_threads_gets_a_workers_share(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cpu_count", lambda: 8)
    spec = desk.end(desk.begin(), tags={"other": "tag"})

    recorded = read_recorded(desk.client, spec.run_id)

    assert (recorded.threads, recorded.assumed_threads) == (4, True)
    assert recorded.spec.hyperparameters == spec.hyperparameters
    assert recorded.spec.seed == spec.seed


def test_a_continued_training_goes_on_from_the_same_run(desk: Desk) -> None:
    spec = desk.end(desk.begin(), tags={"threads": "1", "continued_after_epoch": "2"})
    desk.client.set_tag(spec.run_id, "continues_trial", "3")
    desk.client.set_tag(spec.run_id, "continues_run", "0" * 32)
    desk.client.set_tag(spec.run_id, "earlier_seeds", "7:1 8:2")

    assert read_recorded(desk.client, spec.run_id).spec.continues == EarlierTrial(3, "0" * 32, 2, ((7, 1), (8, 2)))


def test_a_worker_that_dies_ends_the_replay_and_keeps_its_log(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.end(desk.begin())
    simulate(monkeypatch, "segfault")

    with pytest.raises(StudyError, match=r"The worker died while it trained trial 000 .* again: signal SIGSEGV"):
        desk.replay(0)
    (folder,) = tmp_path.iterdir()
    assert (folder / "worker-0.log").exists()


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (FailReason.TIMEOUT, "--trial-timeout"),
        (FailReason.OOM, "memory"),
        (FailReason.INFEASIBLE, "--max-parameters"),
        (FailReason.ERROR, "failure.txt"),
        (FailReason.INTERRUPTED, "stopped from outside"),
    ],
)
def test_a_trial_that_something_else_ended_is_refused_with_that(reason: FailReason, told: str, desk: Desk) -> None:
    spec = desk.end(desk.begin(), TrialState.FAILED, 1, reason)
    for named in (0, spec.run_id):
        with pytest.raises(BadInputError, match=f"cannot be compared with itself: .*{told}"):
            desk.replay(named)


def test_what_names_no_ended_training_is_refused(desk: Desk, name: str) -> None:
    with pytest.raises(BadInputError, match=f"There is no trial 000 of study {name}: it has none yet"):
        desk.replay(0, name)
    running = desk.begin()
    for named, told in (
        (0, f"Trial 000 of study {name} cannot be compared with itself: it has not ended"),
        (running.run_id, "it has not ended"),
        (7, f"There is no trial 007 of study {name}: it has the trials 0 to 0"),
        ("ffff0000ffff", "No run has an id that begins with 'ffff0000ffff'"),
        (desk.run_id, "is none of a trial or of a finalist's repeat: its kind is study"),
    ):
        with pytest.raises(BadInputError, match=re.escape(told)):
            desk.replay(named, None if isinstance(named, str) else name)
    with pytest.raises(BadInputError, match=rf"There is no study '{name}x' .*did you mean {name}\?"):
        desk.replay(0, f"{name}x")


def test_an_id_that_several_runs_begin_with_is_refused(desk: Desk) -> None:
    begun = [desk.begin().run_id[:1] for _ in range(17)]
    shared = next(letter for letter in begun if begun.count(letter) > 1)
    with pytest.raises(BadInputError, match=f"runs have an id that begins with '{shared}'"):
        read_recorded(desk.client, shared)


def test_other_images_are_refused(desk: Desk, name: str) -> None:
    desk.end(desk.begin())
    desk.alter("params", "data_digest", "d" * 64)
    with pytest.raises(DataError, match=r"digits: found images with the digest .* Expected d{64}"):
        desk.replay(0, name)


def test_a_run_with_an_altered_parameter_is_refused(desk: Desk, name: str) -> None:
    desk.end(desk.begin())
    desk.alter("params", "epochs", "many")
    with pytest.raises(StoreError, match="its parameter epochs is 'many'"):
        desk.replay(0, name)


@pytest.mark.parametrize("named", ["", "-1", "abc", "9F5FD225", "99999999999x", "١٢", "3\n", "a' or 1=1"])
def test_what_can_name_neither_a_trial_nor_a_run_is_refused(named: str) -> None:
    with pytest.raises(BadInputError, match="names no trial"):
        ReplayConfig(named)
