"""The evaluation: what a trained model makes of a split, class by class."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from sklearn.metrics import classification_report, confusion_matrix

from fashion_study.data.dataset import Split
from fashion_study.training.latency import traced

BATCH = 1000


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Say how a model does on a split.

    `recall` and `precision` are by class name. `confusion` has the true classes as rows and the predicted
    ones as columns. `probabilities` has the shape (images, classes), float32. `ms_per_image` is the median
    time of a batch of up to 1,000 images, divided by its images, in milliseconds, on this process's threads.
    """

    class_names: tuple[str, ...]
    accuracy: float
    macro_f1: float
    recall: dict[str, float]
    precision: dict[str, float]
    confusion: npt.NDArray[np.int64]
    report: dict[str, Any]
    predicted: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    ms_per_image: float


@dataclass(frozen=True)
class ConfusedPair:
    """Say how many images of the class `true` were taken for `predicted`, and which share of that class."""

    true: str
    predicted: str
    count: int
    share: float


def evaluate(model: keras.Model, split: Split, class_names: Sequence[str]) -> Evaluation:
    """Predict every image of a split and compare with its labels; `class_names` are in label order."""
    probabilities, ms_per_image = _predict(model, split.images)
    predicted = probabilities.argmax(axis=1)
    labels = list(range(len(class_names)))
    report: dict[str, Any] = classification_report(
        split.labels,
        predicted,
        labels=labels,
        target_names=list(class_names),
        output_dict=True,
        zero_division=0.0,
    )
    return Evaluation(
        class_names=tuple(class_names),
        accuracy=float((predicted == split.labels).mean()),
        macro_f1=float(report["macro avg"]["f1-score"]),
        recall={name: float(report[name]["recall"]) for name in class_names},
        precision={name: float(report[name]["precision"]) for name in class_names},
        confusion=confusion_matrix(split.labels, predicted, labels=labels),
        report=report,
        predicted=predicted,
        probabilities=probabilities,
        ms_per_image=ms_per_image,
    )


def most_confused(confusion: npt.NDArray[np.int64], class_names: Sequence[str], k: int) -> list[ConfusedPair]:
    """Return the `k` most frequent mistakes, the most frequent first; fewer where there are fewer kinds."""
    pairs = [
        ConfusedPair(true, predicted, int(count), float(count / row.sum()))
        for true, row in zip(class_names, confusion, strict=True)
        for predicted, count in zip(class_names, row, strict=True)
        if count and true != predicted
    ]
    return sorted(pairs, key=lambda pair: -pair.count)[:k]


def _predict(model: keras.Model, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], float]:
    # A plain loop over one traced function: `model.predict` waits for tf.data's tuning thread at its end.
    answer = traced(model, images[:1])
    parts, costs = [], []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        started = time.perf_counter()
        parts.append(answer(batch).numpy())
        costs.append((time.perf_counter() - started) / len(batch))
    return np.concatenate(parts), 1000 * median(costs)
