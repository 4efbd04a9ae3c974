"""The gates between a challenger and the alias `champion`: numbers in, a result with its reason out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fashion_study.statistics import paired_interval
from fashion_study.trial import MAX_PARAMETERS

Share = Annotated[float, Field(gt=0, lt=1)]


class Frozen(BaseModel):
    """A record of a promotion: frozen, and without fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GateResult(Frozen):
    """A gate's result: the value found, the limit, and both in a sentence."""

    name: str
    passed: bool
    value: float | str | None
    limit: float | str | None
    sentence: str


class ClassRecall(Frozen):
    """A class's recall with both models; the interval is that of the difference, challenger's less champion's."""

    name: str
    images: int
    challenger: float
    champion: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Return by how much the recall rises."""
        return self.challenger - self.champion


@dataclass(frozen=True, eq=False)
class Paired:
    """The predictions of two models for the same images, int64 (n,) like the true `labels`."""

    labels: npt.NDArray[np.int64]
    challenger: npt.NDArray[np.int64]
    champion: npt.NDArray[np.int64]

    def discordant(self, of: npt.NDArray[np.bool_] | None = None) -> tuple[int, int]:
        """Count the images that only the challenger, and that only the champion gets right."""
        chosen = np.ones(len(self.labels), dtype=bool) if of is None else of
        ours, theirs = (self.labels == predicted for predicted in (self.challenger, self.champion))
        return int((ours & ~theirs & chosen).sum()), int((theirs & ~ours & chosen).sum())


class Gates(Frozen):
    """The gates, and the limits of each.

    `alpha`: the accuracy gate's level before it is divided by the readings of the holdout. `recall_margin`: how far a
    class's recall may fall at `recall_confidence`, as a share of 1, wide because another seed alone can move it by ten
    points. `max_parameters`: weights of the model. `max_latency_ms`: the challenger's time for an image on one thread;
    a ratio to the champion's would refuse size itself. `max_moved_share`: images that another machine's arithmetic may
    predict otherwise than was logged.
    """

    alpha: Share = 0.05
    recall_margin: Share = 0.10
    recall_confidence: Share = 0.95
    max_parameters: Annotated[int, Field(ge=1)] = MAX_PARAMETERS
    max_latency_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    max_moved_share: Annotated[float, Field(ge=0, lt=1)] = 0.001

    @model_validator(mode="before")
    @classmethod
    def _without_a_ratio(cls, limits: object) -> object:
        # Decisions of earlier versions have one.
        return {k: v for k, v in limits.items() if k != "max_latency_ratio"} if isinstance(limits, dict) else limits

    def accuracy(self, paired: Paired, readings: int) -> GateResult:
        """Ask for more right answers than the champion's, at a level divided by the readings of the holdout.

        The k-th reading is judged at alpha / k. That is no bound on the error over endlessly many readings
        (docs/decisions/0008-promotion-by-gates.md).
        """
        ours, theirs = paired.discordant()
        images, alpha = len(paired.labels), self.alpha / readings
        p = mcnemar_p(ours, theirs)
        right = int((paired.labels == paired.challenger).sum())
        divided = f" ({self.alpha:g} / {readings} readings)" if readings > 1 else ""
        sentence = (
            f"{right:,} right answers against {right - ours + theirs:,} of {images:,}: "
            f"{_points((ours - theirs) / images)}; exact McNemar p = {p:.2g}, limit {alpha:.2g}{divided}. "
            f"{_power(ours + theirs, images, alpha)}"
        )
        passed = ours > theirs and p < alpha
        return GateResult(name="accuracy", passed=passed, value=p, limit=alpha, sentence=sentence)

    def class_recalls(self, paired: Paired, class_names: Sequence[str]) -> list[ClassRecall]:
        """Compare the recall of every class that has images."""
        found = []
        for label, name in enumerate(class_names):
            members = paired.labels == label
            if not (images := int(members.sum())):
                continue
            only_challenger, only_champion = paired.discordant(members)
            low, high = paired_interval(only_challenger, only_champion, images, self.recall_confidence)
            challenger, champion = (float((of[members] == label).mean()) for of in (paired.challenger, paired.champion))
            found.append(
                ClassRecall(name=name, images=images, challenger=challenger, champion=champion, low=low, high=high)
            )
        return found

    def recall(self, recalls: Sequence[ClassRecall]) -> GateResult:
        """Ask that no class's recall falls by more than the margin beyond its confidence interval.

        The intervals are of one class each, not simultaneous: the gate is meant to refuse sooner rather than later.
        """
        worst = min(recalls, key=lambda recall: recall.high)
        fallen = [recall for recall in recalls if recall.high < -self.recall_margin]
        margin, confidence = f"{100 * self.recall_margin:g} points", f"{100 * self.recall_confidence:g} % interval"
        if fallen:
            changes = ", ".join(map(_change, fallen))
            said = f"{changes}: more than {margin} below, beyond the {confidence}"
        else:
            lowest = min(recalls, key=lambda recall: recall.difference)
            said = f"no class falls by more than {margin} beyond its {confidence}; the lowest change: {_change(lowest)}"
        fewest = min(recall.images for recall in recalls)
        # The smallest fall that refuses where the challenger gains no image at all.
        highs = (paired_interval(0, lost, fewest, self.recall_confidence)[1] for lost in range(1, fewest + 1))
        smallest = next((lost for lost, high in enumerate(highs, 1) if high < -self.recall_margin), fewest)
        points = f"{100 * smallest / fewest:.1f} points"
        sentence = f"{said}. A fall of less than {points} goes unseen with {fewest:,} images of a class."
        name, limit = "recall per class", -self.recall_margin
        return GateResult(name=name, passed=not fallen, value=worst.high, limit=limit, sentence=sentence)

    def parameters(self, parameters: int) -> GateResult:
        """Ask for no more weights than the limit."""
        limit, passed = self.max_parameters, parameters <= self.max_parameters
        sentence = f"{parameters:,} parameters, limit {limit:,}."
        return GateResult(name="parameters", passed=passed, value=parameters, limit=limit, sentence=sentence)

    def latency(self, challenger_ms: float, champion_ms: float, *, one_thread: bool = True) -> GateResult:
        """Ask for a model that is not too slow, by the medians of both in milliseconds per image.

        Where TensorFlow had begun before, in a notebook, it was not on `one_thread`, and the sentence says so.
        """
        limit, passed = self.max_latency_ms, challenger_ms <= self.max_latency_ms
        sentence = (
            f"{challenger_ms:.3f} ms per image, limit {limit:g}; {champion_ms:.3f} of the model compared with "
            f"(medians, measured in turn on {'one thread' if one_thread else 'the threads that this process has'})."
        )
        return GateResult(name="latency", passed=passed, value=challenger_ms, limit=limit, sentence=sentence)

    def fidelity(self, logged: npt.NDArray[np.int64] | None, found: npt.NDArray[np.int64], split: str) -> GateResult:
        """Ask that the reloaded model predicts what was logged when it was trained, by the confusion matrices (c, c).

        `split` names the images. An image that is predicted otherwise leaves one cell of its row for another one, so
        half the sum of differences is the fewest images that moved.
        """
        limit, value, passed = self.max_moved_share, None, False
        if logged is None:
            said = f"not logged: the run has no confusion matrix of its {split} images, so nothing can be compared."
        elif logged.shape != found.shape or not np.array_equal(logged.sum(axis=1), found.sum(axis=1)):
            said = f"the logged confusion matrix is of other {split} images than these."
        else:
            moved, images = int(np.abs(logged - found).sum()) // 2, int(found.sum())
            value, passed = moved / images, moved <= limit * images
            allowed = f"{math.floor(limit * images):,}" if limit * images >= 1 else "none of so few images"
            said = (
                f"{moved:,} of {images:,} {split} images predicted otherwise than logged at training time, "
                f"limit {allowed} ({100 * limit:g} %)."
            )
        return GateResult(name="fidelity", passed=passed, value=value, limit=limit, sentence=said)

    @staticmethod
    def signature(logged: str, loaded: str, champion: str | None) -> GateResult:
        """Ask that the challenger's inputs and outputs are those of its signature, and of the champion's."""
        if logged != loaded:
            said = f"the signature says {logged}, and the model takes and gives {loaded}."
        elif champion not in (None, logged):
            said = f"{logged}, and that of the model compared with is {champion}: its callers could not go on."
        else:
            said = f"{logged}{', the same as the model compared with' if champion else ''}."
        passed = logged == loaded and champion in (None, logged)
        return GateResult(name="signature", passed=passed, value=logged, limit=champion or loaded, sentence=said)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test, from the images that only one of two models gets right.

    McNemar (1947), Psychometrika 12, 153-157; exact as the binomial test of the discordant pairs at one half.
    """
    # SciPy is imported in these functions: it takes a second, and a refusal of bad input must not wait for it.
    from scipy.stats import binomtest

    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def fewest_disagreements(alpha: float) -> int:
    """Return on how many images two models must disagree at least for McNemar's p to get below `alpha`."""
    return next(n for n in count(1) if 0.5 ** (n - 1) < alpha)


def smallest_significant_lead(disagreements: int, alpha: float) -> int | None:
    """Return the smallest lead in right answers that is significant with so many disagreements, None where none is."""
    from scipy.stats import binom

    fewer = np.arange(disagreements // 2 + 1)
    significant = np.flatnonzero(2 * binom.cdf(fewer, disagreements, 0.5) < alpha)
    return disagreements - 2 * int(significant[-1]) if significant.size else None


def _power(disagreements: int, images: int, alpha: float) -> str:
    """Return a sentence with the lead that would have been enough."""
    lead = smallest_significant_lead(disagreements, alpha)
    if lead is None:
        needed = fewest_disagreements(alpha)
        return (
            f"Too few images for this gate: the models disagree on {disagreements}, and at least {needed} "
            "disagreements are needed for any lead to be significant."
        )
    return (
        f"With {disagreements:,} disagreements a lead of {lead:,} ({_points(lead / images)}) is the smallest "
        "significant one."
    )


def _change(recall: ClassRecall) -> str:
    interval = f"{100 * recall.low:+.1f} to {100 * recall.high:+.1f}"
    return f"class {recall.name}: {_points(recall.difference)} ({interval})"


def _points(share: float) -> str:
    return f"{100 * share:+.2f} points"
