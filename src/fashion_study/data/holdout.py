"""The holdout: images that choose nothing. No other module reads them."""

from fashion_study.data.catalog import describe
from fashion_study.data.dataset import Split
from fashion_study.trial import DataSource


def load_holdout(source: DataSource) -> Split:
    """Read the holdout: the 10,000 official test images, or the fifth of the digits that no study sees.

    Only promotion, once per challenger, and the reproduction of the baseline may call this, and each of them
    counts the reading in the tracking store. What chooses parameters, epochs or a challenger must not.
    """
    return describe(source.name).read_holdout(source)
