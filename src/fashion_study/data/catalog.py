"""The catalog of data sets: where a command finds images by the name of their kind."""

import logging
from dataclasses import replace
from pathlib import Path

from fashion_study.data.dataset import Dataset, DatasetKind, DownloadError, Split, divide
from fashion_study.data.digits import DIGITS
from fashion_study.data.fashion_mnist import FASHION_MNIST, PACKAGE
from fashion_study.errors import BadInputError
from fashion_study.trial import DataSource

KINDS: dict[str, DatasetKind] = {kind.name: kind for kind in (FASHION_MNIST, DIGITS)}
# The preferred kind where its files can be had, else the embedded one.
AUTO = "auto"
PREFERRED, EMBEDDED = FASHION_MNIST, DIGITS
FALLBACK = (
    f"{PREFERRED.title} is neither on disk nor can it be downloaded: FALLING BACK to {EMBEDDED.title}. "
    f"These results say nothing about {PREFERRED.title}. On Debian and Ubuntu, "
    f"apt-get install {PACKAGE} has it; or name its folder with --data-dir or FASHION_MNIST_DIR."
)

_log = logging.getLogger(__name__)


def describe(name: str) -> DatasetKind:
    """Return the kind of data set that has a name.

    Raises:
        BadInputError: there is none.
    """
    if name not in KINDS:
        raise BadInputError(f"{name!r} is no data set. Expected one of {', '.join(KINDS)}.")
    return KINDS[name]


def locate(name: str, data_dir: Path | None = None, *, may_download: bool = True) -> DataSource:
    """Find verified images: in `data_dir` or the folder that the environment names, else in a cache or by downloading.

    `auto` falls back to the embedded digits where nothing is on disk or can be downloaded, and says so.

    Raises:
        BadInputError: there is no such data set.
        DataError: files are damaged or cannot be had, or are missing from a folder that the user has named.
    """
    if name != AUTO:
        return describe(name).locate(data_dir, may_download)
    try:
        return PREFERRED.locate(data_dir, may_download)
    except DownloadError as error:
        _log.warning("Falling back to the embedded digits. %s", error)
        return replace(EMBEDDED.locate(data_dir, may_download), is_fallback=True)


def check_limit(source: DataSource, limit_train: int | None) -> None:
    """Refuse a limit that the training images of `source` cannot meet, before any of them is read."""
    kind = describe(source.name)
    fewest, most = 2 * len(kind.class_names), kind.training_images
    if limit_train is not None and not fewest <= limit_train <= most:
        raise BadInputError(
            f"--limit-train is {limit_train}. Expected {fewest:,} to {most:,}, the training images of {source.name}."
        )


def load_dataset(source: DataSource, limit_train: int | None = None) -> Dataset:
    """Load the training and validation images of a study, the same for every study of a data set.

    `limit_train` keeps that many training images, stratified; the validation images stay as they are.
    """
    check_limit(source, limit_train)
    kind = describe(source.name)
    train, validation, split_digest = divide(load_pool(source), kind.validation_share, limit_train)
    return Dataset(kind.name, kind.image_shape, kind.class_names, train, validation, split_digest, source)


def load_pool(source: DataSource) -> Split:
    """Load all images that may be fitted to: training and validation together, in the files' order."""
    return describe(source.name).read_pool(source)
