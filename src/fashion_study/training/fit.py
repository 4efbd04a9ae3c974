"""The fit: epochs of training, each followed by a look at the validation images."""

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
    """Say what one epoch reached. `number` counts from 1; `seconds` is training time without validation.

    The train figures are running means over the epoch, as Keras prints them. The validation figures are NaN
    where there are no validation images, and in an epoch that diverged before it ended. Both losses are NaN where the
    epoch left weights that are not finite.
    """

    number: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    images_per_second: float


class FitEnd(StrEnum):
    """Name how a fit ended."""

    COMPLETED = "completed"
    PRUNED = "pruned"
    DIVERGED = "diverged"


@dataclass(frozen=True)
class FitOutcome:
    """Say how a fit ended and what every epoch reached; a diverged fit's last epoch may be a partial one."""

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


def seed_training(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow; to be called before the model is built."""
    keras.utils.set_random_seed(seed)


def fit(
    model: keras.Model,
    train: Split,
    validation: Split | None,
    params: Hyperparameters,
    seed: int,
    on_epoch: Callable[[Epoch], bool],
    epochs_done: int = 0,
) -> FitOutcome:
    """Train a compiled model up to `params.epochs`, or until `on_epoch` answers False or the loss diverges.

    A model that was trained already for `epochs_done` goes on with the next one.
    `on_epoch` sees every epoch that ended with finite losses. Within an epoch a loss that is NaN or infinite
    ends the fit. The order of the images depends on `seed` alone and differs from epoch to epoch.
    """
    batches = _batches(train, params.batch_size, shuffle_seed=seed)
    checks = None if validation is None else _batches(validation, VALIDATION_BATCH)
    epochs: list[Epoch] = []
    for number in range(epochs_done + 1, params.epochs + 1):
        epoch = _run_epoch(model, number, batches, len(train.labels), checks)
        epochs.append(epoch)
        # A last step can ruin the weights after its own loss was taken: only validation shows it.
        losses = [epoch.train_loss] if checks is None else [epoch.train_loss, epoch.val_loss]
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
    return order.batch(size).map(gather).with_options(_without_autotune())


def _without_autotune() -> tf.data.Options:
    """Switch tf.data's tuning thread off.

    It sleeps in doubling intervals, and whoever ends an iteration waits for its sleep to end: a fit then
    lasts up to twice as long as its work.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1
    return options


def _run_epoch(
    model: keras.Model, number: int, batches: tf.data.Dataset, images: int, checks: tf.data.Dataset | None
) -> Epoch:
    started = time.perf_counter()
    stop = keras.callbacks.TerminateOnNaN()
    history = model.fit(
        batches, epochs=number, initial_epoch=number - 1, callbacks=[stop], shuffle=False, verbose=0
    ).history
    seconds = time.perf_counter() - started
    train_accuracy = history["accuracy"][0]
    # oneDNN's ReLU makes zero of NaN, so that the loss of a model with such weights can be finite again.
    train_loss = history["loss"][0] if _has_finite_weights(model) else math.nan
    checked = {"loss": math.nan, "accuracy": math.nan}
    if checks is not None and math.isfinite(train_loss):
        checked = model.evaluate(checks, return_dict=True, verbose=0)
    return Epoch(
        number=number,
        train_loss=float(train_loss),
        train_accuracy=float(train_accuracy),
        val_loss=float(checked["loss"]),
        val_accuracy=float(checked["accuracy"]),
        seconds=seconds,
        images_per_second=images / seconds,
    )


def _has_finite_weights(model: keras.Model) -> bool:
    return all(np.isfinite(weights).all() for weights in model.get_weights())
