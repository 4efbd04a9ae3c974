"""The replay of a trial: trained again, in a worker that records nothing, and compared with its run."""

import shutil
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from fashion_study.data.catalog import load_dataset, locate
from fashion_study.errors import DataError, StudyError
from fashion_study.executors.local import LocalExecutor
from fashion_study.replay.comparison import Replay, compare
from fashion_study.replay.recorded import CURVES, Recorded, read_recorded, run_of_trial
from fashion_study.replay.request import ReplayConfig
from fashion_study.store.failures import store_failures
from fashion_study.store.reading import reading
from fashion_study.store.store import Store
from fashion_study.study.loop import Loop, Source
from fashion_study.study.progress import Observer
from fashion_study.trial import AttemptLost, DataSource, EpochReport, TrialResult, TrialSpec, TrialState, WorkerSettings


def replay(config: ReplayConfig, store: Store, observer: Observer) -> Replay:
    """Train a trial or a finalist's repeat again, in a worker as then, and compare it with its run to the bit.

    It is trained as far as the recorded training went, with as many threads. Nothing is written into the store, and
    only the model is read from it from which a continued training goes on.

    Raises:
        BadInputError: there is no such trial, or it has no end that could be compared.
        StoreError: the store cannot be read, or what is needed is missing from it.
        DataError: the images are missing or others.
        StudyError: the worker cannot work, or dies; what it printed is kept.
    """
    with ExitStack() as stack:
        with store_failures(store, "python -m experiments.doctor looks for damage."):
            opened = stack.enter_context(reading(store))
            run_id = config.trial if config.number is None else run_of_trial(opened, config.number, config.study)
            client = opened.client()
            recorded = read_recorded(client, run_id, config.study)
        return _train(recorded, _find_images(recorded, config.data_dir), client.tracking_uri, observer)


def _train(recorded: Recorded, source: DataSource, tracking_uri: str, observer: Observer) -> Replay:
    """Train again, and compare."""
    spec, threads = recorded.spec, recorded.threads
    with_threads = f"{spec.precision}, {threads} thread{'s' if threads > 1 else ''}"
    observer.begin(f"{recorded.label}, again: seed {spec.seed}, {with_threads}", 0, 1, "trainings")
    if recorded.assumed_threads:
        observer.note("its run does not name its threads: as many are taken as a worker of its study has here")
    settings = WorkerSettings(source, recorded.limit_train, threads, tracking_uri, records=False)
    folder = Path(tempfile.mkdtemp(prefix="fashion-study-replay-"))
    again = _Again(recorded, [recorded.spec])
    with closing(LocalExecutor(settings, 1, folder)) as executor:
        Loop(again, executor, observer).run()
    # Not after an error, which names the log in it.
    shutil.rmtree(folder)
    return compare(recorded, again.curves, again.result)


def _find_images(recorded: Recorded, data_dir: Path | None) -> DataSource:
    """Find the images of a training.

    Raises:
        DataError: they are missing, damaged, or others than those it was trained on.
    """
    source = locate(recorded.dataset, data_dir)
    split = load_dataset(source, recorded.limit_train).split_digest
    for what, found, expected in (
        ("images", source.digest, recorded.data_digest),
        ("a split of them", split, recorded.split_digest),
    ):
        # MLflow keeps the beginning of a digest.
        if not found.startswith(expected):
            raise DataError(
                f"{source.name}: found {what} with the digest {found}. Expected {expected}, with which it was "
                "trained: name the folder of those files with --data-dir, or use the versions of that time."
            )
    return source


@dataclass(eq=False)
class _Again(Source):
    """The one training of a replay as the work of a loop: its curves by epoch and figure, and its `result`."""

    recorded: Recorded
    left: list[TrialSpec]
    curves: dict[int, dict[str, float]] = field(default_factory=dict)
    result: TrialResult = field(init=False)

    def next(self) -> TrialSpec | None:
        """Return the recorded attempt, once."""
        return self.left.pop() if self.left else None

    def report(self, spec: TrialSpec, report: EpochReport) -> bool:  # noqa: ARG002
        """Keep an epoch's figures; stop where the recorded training was pruned, or past where it diverged."""
        self.curves[report.epoch] = {name: getattr(report, name) for name in CURVES}
        recorded = self.recorded
        if recorded.state is TrialState.COMPLETE:
            return False
        return report.epoch >= recorded.epochs_run + (recorded.state is TrialState.FAILED)

    def settle(self, spec: TrialSpec, result: TrialResult) -> None:  # noqa: ARG002
        """Keep the result."""
        self.result = result

    def lose(self, spec: TrialSpec, lost: AttemptLost) -> TrialState:  # noqa: ARG002
        """End the replay."""
        raise StudyError(
            f"The worker died while it trained {self.recorded.label} again: {lost.cause}. Expected it to "
            "come to the end. Close what takes memory, and start the replay once more."
        )
