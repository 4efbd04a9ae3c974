"""Data sets as values: their images, and what is known of a kind before any image is read."""

from __future__ import annotations

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
