"""A recorded training once more, in a worker that records nothing."""

import shutil
import tempfile
from contextlib import closing
from pathlib import Path

from fashion_study.data.catalog import load_dataset, locate
from fashion_study.errors import DataError, StudyError
from fashion_study.executors.local import LocalExecutor
from fashion_study.replay.recorded import CURVES, Images, Recorded
from fashion_study.study.loop import Loop, Source
from fashion_study.study.progress import Observer
from fashion_study.trial import (
    AttemptLost,
    DataSource,
    EpochReport,
    TrialResult,
    TrialSpec,
    TrialState,
    WorkerSettings,
)


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


class Again(Source):
    """The one training of a replay as the work of a loop: its curves by epoch and figure, and its `result`."""

    result: TrialResult

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._left = [recorded.spec]
        self.curves: dict[int, dict[str, float]] = {}

    def next(self) -> TrialSpec | None:
        """Return the recorded attempt, once."""
        return self._left.pop() if self._left else None

    def report(self, spec: TrialSpec, report: EpochReport) -> bool:  # noqa: ARG002
        """Keep an epoch's figures; stop where the recorded training was pruned, or past where it diverged."""
        self.curves[report.epoch] = {name: getattr(report, name) for name in CURVES}
        recorded = self._recorded
        if recorded.state is TrialState.COMPLETE:
            return False
        return report.epoch >= recorded.epochs_run + (recorded.state is TrialState.FAILED)

    def settle(self, spec: TrialSpec, result: TrialResult) -> None:  # noqa: ARG002
        """Keep the result."""
        self.result = result

    def lose(self, spec: TrialSpec, lost: AttemptLost) -> TrialState:  # noqa: ARG002
        """End the replay."""
        raise StudyError(
            f"The worker died while it trained {self._recorded.label} again: {lost.cause}. Expected it to "
            "come to the end. Close what takes memory, and start the replay once more."
        )


def train_again(recorded: Recorded, source: DataSource, tracking_uri: str, observer: Observer) -> Again:
    """Train as far as the recorded training went, with as many threads.

    From the store only the model is read from which a continued training goes on.

    Raises:
        StudyError: the worker cannot work, or dies; what it printed is kept.
    """
    settings = WorkerSettings(source, recorded.images.limit_train, recorded.threads, tracking_uri, records=False)
    folder = Path(tempfile.mkdtemp(prefix="fashion-study-replay-"))
    again = Again(recorded)
    with closing(LocalExecutor(settings, 1, folder)) as executor:
        Loop(again, executor, observer).run()
    # Not after an error, which names the log in it.
    shutil.rmtree(folder)
    return again
