"""The latency of models: how one answers while it is timed, and two compared on one machine at one time."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

BATCH = 128
ROUNDS = 15


def interleaved_ms(models: tuple[keras.Model, keras.Model], images: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Return the milliseconds per image of two models: medians of 15 batches of up to 128 images each.

    They predict in turn, and each round in the other order, so that whatever else the machine does slows both alike.
    """
    batch = images[:BATCH]
    answers = [traced(model, batch) for model in models]
    costs: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS):
        for which in (0, 1) if number % 2 else (1, 0):
            costs[which].append(_seconds(answers[which], batch))
    first, second = (1000 * median(seconds) / len(batch) for seconds in costs)
    return first, second


def traced(model: keras.Model, batch: npt.NDArray[np.uint8]) -> Callable[[Any], Any]:
    """Return a model's answer to such images as one function, traced by a first call with `batch`."""
    signature = [tf.TensorSpec((None, *batch.shape[1:]), batch.dtype)]
    # Nothing in it is for AutoGraph, which would leave a file of code in the temporary folder.
    answer: Callable[[Any], Any] = tf.function(
        lambda part: model(part, training=False), input_signature=signature, autograph=False
    )
    answer(batch)
    return answer


def _seconds(answer: Callable[[Any], Any], batch: npt.NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    answer(batch).numpy()
    return time.perf_counter() - started
