"""The confidence intervals that compare models and engines."""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist, mean, stdev, variance

CONFIDENCE = 0.95


def paired_interval(
    only_first: int, only_second: int, images: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the confidence interval of the difference of two accuracies measured on the same images.

    `only_first` and `only_second` count the images that one model alone predicts rightly. Agresti and Min (2005),
    "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24, 729-740:
    Wald's interval after half an image is added to each of the four cells.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n, lead = images + 2, only_first - only_second
    half = z * math.sqrt(only_first + only_second + 1 - lead**2 / n) / n
    return max(-1.0, lead / n - half), min(1.0, lead / n + half)


def wilson_interval(right: int, images: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the Wilson score interval of an accuracy."""
    # SciPy is imported in these functions: it takes a second, and a refusal of bad input must not wait for it.
    from scipy.stats import binomtest

    interval = binomtest(right, images).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def student_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the two-sided confidence interval of the mean of at least two values (Student's t)."""
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def pooled_deviation(samples: Iterable[Sequence[float]]) -> tuple[float, int] | None:
    """Return the standard deviation within the samples and its degrees of freedom; None where none has two values."""
    several = [values for values in samples if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if not freedom:
        return None
    return math.sqrt(sum((len(values) - 1) * variance(values) for values in several) / freedom), freedom


def student_margin(deviation: float, freedom: int, size: float, confidence: float = CONFIDENCE) -> float:
    """Return how far below a mean of `size` values its one-sided lower confidence bound lies (Student's t)."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, confidence)) * deviation / math.sqrt(size)
