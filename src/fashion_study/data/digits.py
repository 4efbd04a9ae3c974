"""Scikit-learn's digits: 1,797 images of 8 x 8 pixels, enlarged; embedded, so that a study needs no files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_study.data.dataset import DatasetKind, Split, digest, stratified
from fashion_study.trial import DataSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The size of Fashion-MNIST's images, so that the same spaces fit.
SIDE = 28


def locate(_data_dir: Path | None, _may_download: bool) -> DataSource:
    """Return the source of the digits, wherever a user's other files are."""
    digits = _all_digits()
    return DataSource(DIGITS.name, None, digest(digits.images.tobytes(), digits.labels.tobytes()))


def read_pool(_source: DataSource) -> Split:
    """Read the four fifths that a study may see."""
    return _divided()[0]


def read_holdout(_source: DataSource) -> Split:
    """Read the fifth that no study sees."""
    return _divided()[1]


def enlarge(images: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Resize the 8 x 8 digits (n, 8, 8) with values 0 to 16 to (n, 28, 28, 1) with 0 to 255, bilinearly.

    Computed in whole numbers, so that every machine gets the same bytes and the data digest holds.
    """
    import numpy as np

    small = images.shape[1]
    unit = 2 * SIDE
    # The centre of each row on the small grid, in units of 1 / (2 * SIDE), kept within the outer centres.
    centres = np.clip((2 * np.arange(SIDE) + 1) * small - SIDE, 0, unit * (small - 1))
    weights = np.maximum(0, unit - np.abs(centres[:, np.newaxis] - unit * np.arange(small)))
    sums: NDArray[np.int64] = weights @ images.astype(np.int64) @ weights.T
    white = 16 * unit * unit
    return ((sums * 255 + white // 2) // white).astype(np.uint8)[..., np.newaxis]


def _divided() -> tuple[Split, Split]:
    digits = _all_digits()
    in_use, rest = stratified(digits.labels, keep=len(digits.labels) - len(digits.labels) // 5)
    return digits.take(in_use), digits.take(rest)


@cache
def _all_digits() -> Split:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Split(enlarge(digits.images), digits.target.astype("int64"))


DIGITS = DatasetKind(
    name="digits",
    title="scikit-learn's digits",
    image_shape=(SIDE, SIDE, 1),
    class_names=tuple("0123456789"),
    training_images=1_079,
    validation_share=4,
    locate=locate,
    read_pool=read_pool,
    read_holdout=read_holdout,
)
