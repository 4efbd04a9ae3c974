"""The holdout: images that choose nothing. No other module reads the official test set."""

import numpy as np

from fashion_study.data.dataset import OFFICIAL_FILES, Split, digits_in_use, enlarge, read_pair
from fashion_study.trial import DataSource


def load_holdout(source: DataSource) -> Split:
    """Read the holdout: the 10,000 official test images, or the fifth of the digits that no study sees.

    Only promotion, once per challenger, and the reproduction of the baseline may call this, and each of them
    counts the reading in the tracking store. Whoever chooses parameters, epochs or a challenger must not.
    """
    if source.directory is not None:
        *_, images_name, labels_name = OFFICIAL_FILES
        return read_pair(source.directory, images_name, labels_name, OFFICIAL_FILES)
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    unseen = np.setdiff1d(np.arange(len(labels)), digits_in_use(labels))
    return Split(enlarge(digits.images[unseen]), labels[unseen])
