"""The study's network, trained as a user would with stock Keras alone; prints the images per second."""

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import keras
import tensorflow as tf

from benchmarks.peers.network import build_network
from fashion_study.data.catalog import load_dataset, locate
from fashion_study.data.dataset import Dataset
from fashion_study.trial import Hyperparameters


def bare_rate(
    params: Hyperparameters,
    precision: str,
    threads: int,
    data: Dataset,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the median images per second of the epochs after the first, each without its validation, by `clock`."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = build_network(params.model_dump(), len(data.class_names), precision)
    stopwatch = _Stopwatch(clock)
    model.fit(
        data.train.images.astype("float32"),
        data.train.labels,
        batch_size=params.batch_size,
        epochs=params.epochs,
        validation_data=(data.validation.images.astype("float32"), data.validation.labels),
        callbacks=[stopwatch],
        verbose=0,
    )
    return len(data.train.labels) / median(stopwatch.seconds[1:])


class _Stopwatch(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no annotations.
    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.began = self.clock()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.ended = self.clock()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(self.ended - self.began)


def main() -> None:
    """Read batch size, epochs, images, precision and threads from the command line; print one number."""
    batch_size, epochs, images = map(int, sys.argv[1:4])
    params = Hyperparameters(batch_size=batch_size, epochs=epochs)
    print(bare_rate(params, sys.argv[4], int(sys.argv[5]), load_dataset(locate("fashion-mnist", None), images)))


if __name__ == "__main__":
    main()
