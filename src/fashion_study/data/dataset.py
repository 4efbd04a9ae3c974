"""Data sets as values: their images, how those are divided, and what is known of a kind before any image is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_study.errors import DataError
from fashion_study.trial import DataSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Height, width and channels.
ImageShape = tuple[int, int, int]
# The same for every study, whatever its seed: runs of one experiment are compared on the same images.
SPLIT_SEED = 20_170_825


@dataclass(frozen=True)
class Split:
    """Images, uint8 (n, height, width, channels) from 0 (black) to 255 (white), and labels, int64 (n,).

    `numbers` are the images' numbers in their source, which identify a split; None stands for 0, 1, 2, ...
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    numbers: NDArray[np.int64] | None = None

    def take(self, indices: NDArray[np.int64]) -> Split:
        """Return some of the images."""
        numbers = indices if self.numbers is None else self.numbers[indices]
        return Split(self.images[indices], self.labels[indices], numbers)


@dataclass(frozen=True)
class Dataset:
    """The images that a study may see; `split_digest` identifies which of them train and which validate."""

    name: str
    image_shape: ImageShape
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    split_digest: str
    source: DataSource


@dataclass(frozen=True)
class PublishedFigures:
    """The blog post's figures as shares of 1; `by_class` has the precision and recall of each class."""

    train_accuracy: float
    holdout_accuracy: float
    by_class: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class DatasetKind:
    """A kind of data set: the facts, and how its images are found, verified and read.

    `training_images` train, and of all that may be fitted to, one in `validation_share` validates. `locate` takes a
    folder that the user has named, and whether missing files may be downloaded. `read_holdout` is for `data.holdout`.
    """

    name: str
    title: str
    image_shape: ImageShape
    class_names: tuple[str, ...]
    training_images: int
    validation_share: int
    locate: Callable[[Path | None, bool], DataSource]
    read_pool: Callable[[DataSource], Split]
    read_holdout: Callable[[DataSource], Split]
    published: PublishedFigures | None = None


class DownloadError(DataError):
    """Files that are neither on disk nor to be had."""


def divide(pool: Split, validation_share: int, limit_train: int | None) -> tuple[Split, Split, str]:
    """Divide images into training and validation; return both, and a digest of which images are in which.

    One image in `validation_share` validates. `limit_train` keeps that many training images, stratified.
    """
    import numpy as np

    train, validation = stratified(pool.labels, keep=len(pool.labels) - len(pool.labels) // validation_share)
    if limit_train is not None:
        train = train[_limited(pool.labels[train], limit_train)]
    numbers = np.arange(len(pool.labels)) if pool.numbers is None else pool.numbers
    split_digest = digest(*(numbers[indices].astype("<i8").tobytes() for indices in (train, validation)))
    return pool.take(train), pool.take(validation), split_digest


def stratified(labels: NDArray[np.int64], keep: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide images into `keep` and the rest, each as sorted indices and with every class in proportion."""
    import numpy as np
    from sklearn.model_selection import train_test_split

    kept, rest = train_test_split(np.arange(len(labels)), train_size=keep, random_state=SPLIT_SEED, stratify=labels)
    return np.sort(kept), np.sort(rest)


def digest(*parts: bytes) -> str:
    """Return the SHA-256 of several parts, each with its length."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()


def _limited(labels: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    import numpy as np

    # Each image's rank within its class, as a share of the class: the first of this order are always
    # stratified, and a smaller limit is a subset of a larger one. RandomState never changes its stream.
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    share = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.argsort(share, kind="stable")[:limit])
