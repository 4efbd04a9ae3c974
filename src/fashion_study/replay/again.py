"""The same training once more, in a worker of its own that records nothing."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fashion_study.data.catalog import load_dataset, locate
from fashion_study.errors import DataError, StudyError
from fashion_study.executors.executor import Executor, closing_workers
from fashion_study.executors.local import LocalExecutor
from fashion_study.replay.recorded import Curves, Images, Recorded
from fashion_study.study.progress import Observer
from fashion_study.trial import AttemptLost, DataSource, EpochReport, TrialResult, TrialState, WorkerSettings

TICK_SECONDS = 0.25


@dataclass(frozen=True)
class Again:
    """Show what the training reached this time: its curves by epoch and figure, and its result."""

    curves: Curves
    result: TrialResult


def find_images(images: Images, data_dir: Path | None) -> DataSource:
    """Find the images of a training.

    Raises:
        DataError: they are missing, damaged, or others than those it was trained on.
    """
    source = locate(images.dataset, data_dir)
    split = load_dataset(source, images.limit_train).split_digest
    found = {"images": source.digest, "a split of them": split}
    for what, recorded in (("images", images.digest), ("a split of them", images.split_digest)):
        # MLflow keeps the beginning of a digest.
        if not found[what].startswith(recorded):
            raise DataError(
                f"{images.dataset}: found {what} with the digest {found[what]}. Expected {recorded}, with which it was "
                "trained: name the folder of those files with --data-dir, or use the versions of that time."
            )
    return source


def train_again(recorded: Recorded, source: DataSource, tracking_uri: str, observer: Observer) -> Again:
    """Train as far as the recorded training went, with as many threads.

    From the store only the model is read from which a continued training goes on.

    Raises:
        StudyError: the worker cannot work, or dies; what it printed is kept.
    """
    settings = WorkerSettings(source, recorded.images.limit_train, recorded.threads, tracking_uri, records=False)
    folder = Path(tempfile.mkdtemp(prefix="fashion-study-replay-"))
    with closing_workers(LocalExecutor(settings, 1, folder)) as executor:
        again = _follow(executor, recorded, observer)
    # Not after an error, which names the log in it.
    shutil.rmtree(folder)
    return again


def _follow(executor: Executor, recorded: Recorded, observer: Observer) -> Again:
    spec = recorded.spec
    curves: dict[int, dict[str, float]] = {}
    executor.submit(spec)
    observer.trial_started(spec)
    while True:
        for event in executor.wait(TICK_SECONDS):
            match event:
                case EpochReport():
                    curves[event.epoch] = _figures(event)
                    executor.answer(event, prune=_is_enough(recorded, event.epoch))
                    observer.epoch_done(spec, event)
                case TrialResult():
                    observer.trial_closed(spec, event, None)
                    return Again(curves, event)
                case AttemptLost():
                    raise StudyError(
                        f"The worker died while it trained {recorded.label} again: {event.cause}. Expected it to "
                        "come to the end. Close what takes memory, and start the replay once more."
                    )


def _figures(report: EpochReport) -> dict[str, float]:
    return {
        "train_loss": report.train_loss,
        "train_accuracy": report.train_accuracy,
        "val_loss": report.val_loss,
        "val_accuracy": report.val_accuracy,
    }


def _is_enough(recorded: Recorded, epoch: int) -> bool:
    """Say whether the training has gone as far as the recorded one, or past where that diverged."""
    if recorded.state is TrialState.COMPLETE:
        return False
    return epoch >= recorded.epochs_run + (recorded.state is TrialState.FAILED)
