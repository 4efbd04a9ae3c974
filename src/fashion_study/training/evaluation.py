"""A trained model's predictions of a split, class by class, and the time they take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from sklearn.metrics import classification_report, confusion_matrix

from fashion_study.data.dataset import Split

BATCH = 1000
# Of a comparison of latencies.
LATENCY_BATCH, ROUNDS = 128, 15

Predict = Callable[[npt.NDArray[np.uint8]], Any]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures of a model on a split.

    `recall` and `precision` are by class name. `confusion` has the true classes as rows and the predicted ones as
    columns. `probabilities` has the shape (images, classes), float32. `ms_per_image` is the median time of a batch of
    up to 1,000 images, divided by its images, in milliseconds, on this process's threads.
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


def evaluate(model: keras.Model, split: Split, class_names: Sequence[str]) -> Evaluation:
    """Predict every image of a split and compare with its labels; `class_names` are in label order."""
    probabilities, ms_per_image = _predicted(model, split.images)
    predicted = probabilities.argmax(axis=1)
    labels = list(range(len(class_names)))
    report: dict[str, Any] = classification_report(
        split.labels, predicted, labels=labels, target_names=list(class_names), output_dict=True, zero_division=0.0
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


def accuracy(model: keras.Model, split: Split) -> float:
    """Predict every image of a split, and return the share of right answers alone."""
    return float((_predicted(model, split.images)[0].argmax(axis=1) == split.labels).mean())


def interleaved_ms(models: tuple[keras.Model, keras.Model], images: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Return the milliseconds per image of two models: medians of 15 batches of up to 128 images each.

    They predict in turn, and each round in the other order, so that other work on the machine slows both alike.
    """
    batch = images[:LATENCY_BATCH]
    functions = [_traced(model, batch) for model in models]
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS):
        for which in (0, 1) if number % 2 else (1, 0):
            seconds[which].append(_timed(functions[which], batch)[1])
    first, second = (1000 * median(costs) / len(batch) for costs in seconds)
    return first, second


def _predicted(model: keras.Model, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], float]:
    """Return the probabilities of images, and the milliseconds for each: the median of the batches."""
    predict = _traced(model, images[:1])
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    parts, seconds = zip(*(_timed(predict, batch) for batch in batches), strict=True)
    return np.concatenate(parts), 1000 * median(cost / len(batch) for cost, batch in zip(seconds, batches, strict=True))


def _traced(model: keras.Model, batch: npt.NDArray[np.uint8]) -> Predict:
    """Return a model's prediction of such images as one function, traced by a first call with `batch`.

    `model.predict` would wait at its end for tf.data's tuning thread.
    """
    # Nothing in it is for AutoGraph, which would leave a file of code in the temporary folder.
    predict: Predict = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec((None, *batch.shape[1:]), batch.dtype)],
        autograph=False,
    )
    predict(batch)
    return predict


def _timed(predict: Predict, batch: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], float]:
    started = time.perf_counter()
    probabilities: npt.NDArray[np.float32] = predict(batch).numpy()
    return probabilities, time.perf_counter() - started
