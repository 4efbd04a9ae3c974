"""The promises of a checkpoint: a training goes on from it to the same bits, or not at all."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import pytest

from fashion_study.data.catalog import locate
from fashion_study.executors.local import WORKER_MODULE, LocalExecutor
from fashion_study.store.checkpoints import Checkpoints, epoch_reached, read, write
from fashion_study.trial import (
    AttemptLost,
    EpochReport,
    Hyperparameters,
    Precision,
    TrialResult,
    TrialSpec,
    TrialState,
    WorkerSettings,
)
from tests.support.empty_store import empty_store
from tests.support.processes import workers_running

SIX = Hyperparameters(
    filters_1=8, filters_2=8, filters_3=8, dense_units=16, learning_rate=0.003, batch_size=32, epochs=6
)

CHANGED = {name for name, value in SIX if value != getattr(Hyperparameters(), name)}


@dataclass
class Bench:
    """Workers of a real store, and what they send."""

    settings: WorkerSettings
    executor: LocalExecutor
    runs: list[str]

    def spec(self, precision: Precision = Precision.FLOAT32) -> TrialSpec:
        return TrialSpec(5, 1, SIX, 1234, self.runs.pop(), precision)

    @property
    def checkpoints(self) -> Checkpoints:
        found = Checkpoints.of(self.settings)
        assert found is not None
        return found

    def follow(self, spec: TrialSpec, killed_after: int = 0) -> tuple[list[int], TrialResult | AttemptLost]:
        """Train an attempt to its end; the worker is killed after the report of an epoch."""
        self.executor.submit(spec)
        epochs = list[int]()
        while True:
            for event in self.executor.wait(1):
                if not isinstance(event, EpochReport):
                    return epochs, event
                epochs.append(event.epoch)
                if event.epoch == killed_after:
                    (worker,) = workers_running(WORKER_MODULE, None)
                    worker.kill()
                else:
                    self.executor.answer(event, prune=False)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("store")
    store = empty_store(root)
    client = store.client()
    experiment = store.experiment_id(client, "digits")
    runs = [client.create_run(experiment).info.run_id for _ in range(12)]
    folder = root / "checkpoints"
    folder.mkdir()
    settings = WorkerSettings(locate("digits"), 200, 1, store.tracking_uri, checkpoints=folder)
    with closing(LocalExecutor(settings, 1, root / "logs")) as executor:
        yield Bench(settings, executor, runs)


@pytest.mark.parametrize("precision", Precision)
def test_a_killed_training_goes_on_to_the_same_bits(bench: Bench, precision: Precision) -> None:
    epochs, whole = bench.follow(bench.spec(precision))
    assert epochs == [1, 2, 3, 4, 5, 6]
    assert isinstance(whole, TrialResult)
    assert whole.state is TrialState.COMPLETE, whole.message

    spec = bench.spec(precision)
    epochs, lost = bench.follow(spec, killed_after=3)
    assert isinstance(lost, AttemptLost)
    header = bench.checkpoints.find(spec)
    assert header is not None
    assert [epoch.epoch for epoch in header.epochs] == epochs == [1, 2, 3]
    resumed, again = bench.follow(replace(spec, attempt=2, resumes=3))

    # The third epoch is reported again, since nobody has answered it.
    assert resumed == [3, 4, 5, 6]
    assert isinstance(again, TrialResult)
    assert again.tags["weights_sha256"] == whole.tags["weights_sha256"]
    assert again.objective == whole.objective
    same = again.metrics.keys() - {"train_seconds", "ms_per_image"}
    assert {name: again.metrics[name] for name in same} == {name: whole.metrics[name] for name in same}
    assert "environment_changed" not in again.tags


@pytest.fixture(scope="module")
def stopped(bench: Bench) -> tuple[TrialSpec, bytes]:
    """Kill a training after its second epoch, and return the attempt that may go on, and its checkpoint."""
    spec = bench.spec()
    bench.follow(spec, killed_after=2)
    return replace(spec, attempt=2, resumes=2), bench.checkpoints.path(spec.label).read_bytes()


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda content: content[:-1], "is not as it was written"),
        (lambda content: content[: len(content) // 2], "is not as it was written"),
        (lambda content: content[:100], "cannot be read"),
        (lambda _: b"", "cannot be read"),
        (lambda content: b"\xff\n\xff" + content, "cannot be read"),
        (lambda _: b'0\n{"epochs": [], "identity": {}}\n', "cannot be read"),
        (lambda content: content[:-9] + b"?" + content[-8:], "is not as it was written"),
    ],
)
def test_a_torn_checkpoint_is_refused(
    bench: Bench, stopped: tuple[TrialSpec, bytes], damage: "object", cause: str
) -> None:
    spec, content = stopped
    bench.checkpoints.path(spec.label).write_bytes(damage(content))  # type: ignore[operator]
    # The coordinator reads the first line alone.
    assert bench.checkpoints.reached(spec) in (0, 2)

    _, end = bench.follow(spec)

    assert isinstance(end, AttemptLost)
    assert end.by_checkpoint
    assert cause in end.cause


def test_a_checkpoint_of_another_training_is_refused(bench: Bench, stopped: tuple[TrialSpec, bytes]) -> None:
    spec, content = stopped
    bench.checkpoints.path(spec.label).write_bytes(content)
    others = [
        replace(spec, seed=1),
        replace(spec, run_id=bench.runs[0]),
        replace(spec, precision=Precision.BFLOAT16),
        replace(spec, hyperparameters=SIX.model_copy(update={"batch_size": 16})),
    ]

    assert [bench.checkpoints.find(other) for other in others] == [None] * 4
    _, end = bench.follow(others[0])

    assert isinstance(end, AttemptLost)
    assert end.by_checkpoint
    assert "of another training" in end.cause
    assert epoch_reached(bench.checkpoints.folder, spec.label, spec.run_id) == 2
    assert epoch_reached(bench.checkpoints.folder, spec.label, bench.runs[0]) == 0


def test_a_checkpoint_from_before_a_hyperparameter_has_its_default(
    bench: Bench, stopped: tuple[TrialSpec, bytes]
) -> None:
    spec, content = stopped
    path = bench.checkpoints.path(spec.label)
    path.write_bytes(content)
    header, arrays = read(path)
    parameters = {name: value for name, value in header.identity["parameters"].items() if name in ("epochs", *CHANGED)}
    identity = dict(header.identity) | {"parameters": parameters}
    write(path, replace(header, identity=identity), [memoryview(arrays)])

    assert "views" not in parameters
    assert bench.checkpoints.find(spec) is not None


def test_it_goes_on_with_other_threads_but_not_other_libraries(bench: Bench, stopped: tuple[TrialSpec, bytes]) -> None:
    spec, content = stopped
    path = bench.checkpoints.path(spec.label)

    def as_if_written_with(**environment: str) -> None:
        path.write_bytes(content)
        header, arrays = read(path)
        write(path, replace(header, environment={**header.environment, **environment}), [memoryview(arrays)])

    as_if_written_with(keras="3.0.0")
    _, refused = bench.follow(spec)
    assert isinstance(refused, AttemptLost)
    assert refused.by_checkpoint
    assert "was written with keras 3.0.0, here" in refused.cause

    as_if_written_with(threads="7")
    _, end = bench.follow(spec)
    assert isinstance(end, TrialResult)
    assert end.state is TrialState.COMPLETE, end.message
    assert end.tags["environment_changed"] == "after epoch 2: threads 7, here 1"
    assert json.loads(path.read_bytes().split(b"\n", 2)[1])["environment"]["threads"] == "1"
