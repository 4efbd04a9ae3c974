"""The training loop: epochs, each followed by an evaluation of the validation images."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import keras
import numpy as np
import tensorflow as tf

from fashion_study.data.dataset import Split
from fashion_study.trial import Hyperparameters

VALIDATION_BATCH = 1000


@dataclass(frozen=True)
class Epoch:
    """The figures of an epoch. `number` counts from 1; `seconds` is training time without validation.

    The train figures are running means over the epoch, as Keras prints them. The validation figures are NaN without
    validation images, and in an epoch that diverged before it ended. Both losses are NaN where the epoch left weights
    that are not finite.
    """

    number: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    images_per_second: float


class FitEnd(StrEnum):
    """The ways in which a fit can end."""

    COMPLETED = "completed"
    PRUNED = "pruned"
    DIVERGED = "diverged"


@dataclass(frozen=True)
class FitOutcome:
    """The end of a fit and its epochs; the last epoch of one that diverged may be a partial one."""

    end: FitEnd
    epochs: tuple[Epoch, ...]

    @property
    def train_seconds(self) -> float:
        """Sum the training time of all epochs, without validation."""
        return sum(epoch.seconds for epoch in self.epochs)


def configure(threads: int) -> None:
    """Give this process `threads` TensorFlow threads, and GPU memory only as it needs it.

    Call it before the first operation: TensorFlow refuses it afterwards.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def fit(
    model: keras.Model,
    train: Split,
    validation: Split | None,
    params: Hyperparameters,
    seed: int,
    on_epoch: Callable[[Epoch], bool],
    epochs_done: int = 0,
) -> FitOutcome:
    """Train a compiled model up to `params.epochs`, or until `on_epoch` returns False or the loss diverges.

    A model that was trained already for `epochs_done` goes on with the next one. `on_epoch` is called after every epoch
    with finite losses. Within an epoch a loss that is NaN or infinite ends the fit. The order of the images depends on
    `seed` alone and differs from epoch to epoch.
    """
    batches = _batches(train, params.batch_size, shuffle_seed=seed)
    validation_batches = None if validation is None else _batches(validation, VALIDATION_BATCH)
    epochs: list[Epoch] = []
    for number in range(epochs_done + 1, params.epochs + 1):
        epoch = _run_epoch(model, number, batches, len(train.labels), validation_batches)
        epochs.append(epoch)
        # A last step can ruin the weights after its own loss was taken: only validation shows it.
        losses = [epoch.train_loss] if validation is None else [epoch.train_loss, epoch.val_loss]
        if not all(map(math.isfinite, losses)):
            return FitOutcome(FitEnd.DIVERGED, tuple(epochs))
        if not on_epoch(epoch):
            return FitOutcome(FitEnd.PRUNED, tuple(epochs))
    return FitOutcome(FitEnd.COMPLETED, tuple(epochs))


def _batches(split: Split, size: int, shuffle_seed: int | None = None) -> tf.data.Dataset:
    """Gather batches from images that stay in memory as bytes: nothing is copied but the batch itself."""
    with tf.device("CPU"):
        images, labels = tf.constant(split.images), tf.constant(split.labels)
    order = tf.data.Dataset.range(len(split.labels))
    if shuffle_seed is not None:
        order = order.shuffle(len(split.labels), seed=shuffle_seed, reshuffle_each_iteration=True)
    # Nothing in it is for AutoGraph, which would leave a file of code in the temporary folder.
    gather = tf.autograph.experimental.do_not_convert(
        lambda index: (tf.gather(images, index), tf.gather(labels, index))
    )
    # Without tf.data's tuning thread: it sleeps in doubling intervals, and the end of an iteration waits for it. A fit
    # would last up to twice as long as its work.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1
    return order.batch(size).map(gather).with_options(options)


def _run_epoch(
    model: keras.Model, number: int, batches: tf.data.Dataset, images: int, validation: tf.data.Dataset | None
) -> Epoch:
    started = time.perf_counter()
    stop = keras.callbacks.TerminateOnNaN()
    trained = model.fit(
        batches, epochs=number, initial_epoch=number - 1, callbacks=[stop], shuffle=False, verbose=0
    ).history
    seconds = time.perf_counter() - started
    # oneDNN's ReLU turns NaN into zero, so that the loss of a model with such weights can be finite again.
    finite = all(np.isfinite(weights).all() for weights in model.get_weights())
    train_loss = float(trained["loss"][0]) if finite else math.nan
    validated = {"loss": math.nan, "accuracy": math.nan}
    if validation is not None and math.isfinite(train_loss):
        validated = model.evaluate(validation, return_dict=True, verbose=0)
    return Epoch(
        number=number,
        train_loss=train_loss,
        train_accuracy=float(trained["accuracy"][0]),
        val_loss=float(validated["loss"]),
        val_accuracy=float(validated["accuracy"]),
        seconds=seconds,
        images_per_second=images / seconds,
    )
