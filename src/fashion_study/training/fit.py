"""The training loop, with an evaluation of the validation images after each epoch, and the choice of its precision."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fashion_study.data.dataset import ImageShape, Split
from fashion_study.training.augmentation import Augmentation, generator
from fashion_study.training.checkpoint import Arrays, Checkpoint
from fashion_study.training.model import ModelTooLargeError, build_model
from fashion_study.trial import Epoch, Hyperparameters, PointCost, Precision, ProbeOrder, ProbeResult, Seeds, TrialState

VALIDATION_BATCH = 1000
# Small, since a processor without bfloat16 instructions can need ten times as long for a step.
PROBE_BATCH, PROBE_STEPS = 64, 8
FEW_STEPS = 3


@dataclass(frozen=True)
class FitOutcome:
    """The end of a fit (complete, pruned, or failed where the loss diverged) and its epochs, the last maybe partial.

    A complete model has the weights after `best_epoch`.
    """

    state: TrialState
    epochs: tuple[Epoch, ...]
    best_epoch: int


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
    save: Callable[[Checkpoint], None] | None = None,
    start: Checkpoint | None = None,
    seeds: Seeds = (),
) -> FitOutcome:
    """Train a compiled model up to `params.epochs`, or until `on_epoch` returns False or the loss diverges.

    A complete model gets the weights after the epoch with the highest validation accuracy, the earliest of equal ones;
    without validation it keeps the last. With `start`, to which the model was restored, it goes on after that epoch.
    `save` and then `on_epoch` are called after every epoch with finite losses. Within an epoch a loss that is NaN or
    infinite ends the fit. Whatever is random in an epoch depends on its number and a seed alone: `seed`, but for the
    epochs to which `seeds` gives another one.
    """
    images = len(train.labels)
    batches = _batches(train, params.batch_size)
    to_validate = None
    if validation is not None:
        to_validate = _batches(validation, VALIDATION_BATCH)(np.arange(len(validation.labels)), None)
    epochs = [] if start is None else list(start.epochs)
    best_epoch, best_weights = (0, []) if start is None else (start.best_epoch, start.best_weights)
    for number in range(len(epochs) + 1, params.epochs + 1):
        own = next((other for other, last in seeds if number <= last), seed)
        _seed_layers(model, own, number)
        order = generator(own, number, "order").permutation(images)
        changed = batches(order, Augmentation.drawn(params, images, own, number))
        epoch, weights, averaged = _run_epoch(model, number, changed, images, to_validate)
        epochs.append(epoch)
        # A last step can ruin the weights after its own loss was taken: only validation shows it.
        losses = [epoch.train_loss] if validation is None else [epoch.train_loss, epoch.val_loss]
        if not all(map(math.isfinite, losses)):
            return FitOutcome(TrialState.FAILED, tuple(epochs), best_epoch)
        if best_epoch == 0 or validation is None or epoch.val_accuracy > epochs[best_epoch - 1].val_accuracy:
            best_epoch, best_weights = number, averaged
        if save is not None:
            optimizer = [variable.numpy() for variable in model.optimizer.variables]
            save(Checkpoint(tuple(epochs), weights, optimizer, best_epoch, best_weights))
        if not on_epoch(epoch):
            return FitOutcome(TrialState.PRUNED, tuple(epochs), best_epoch)
    model.set_weights(best_weights)
    return FitOutcome(TrialState.COMPLETE, tuple(epochs), best_epoch)


def probe(image_shape: ImageShape, classes: int, order: ProbeOrder, max_parameters: int | None = None) -> ProbeResult:
    """Choose the faster precision where none is given, and measure the points, each by some steps on random pixels.

    The first point is a baseline, which is trained whatever its size.
    """
    chosen = _faster_precision(image_shape, classes) if order.precision is None else ProbeResult(order.precision, {})
    costs = []
    for place, point in enumerate(order.points):
        keras.utils.clear_session()
        started, images = time.perf_counter(), point.batch_size
        limit = max_parameters if place else None
        try:
            model = build_model(point, image_shape, classes, chosen.precision, images=images, max_parameters=limit)
        except ModelTooLargeError as error:
            costs.append(PointCost(error.parameters))
            continue
        step = _step_seconds(model, math.inf, images, FEW_STEPS)
        start = time.perf_counter() - started - FEW_STEPS * step
        costs.append(PointCost(model.count_params(), max(0.0, start), step / images))
    return replace(chosen, costs=tuple(costs))


def _faster_precision(image_shape: ImageShape, classes: int) -> ProbeResult:
    """Train the blog post's model in each precision.

    bfloat16 is given up after the first step that takes twice as long as a float32 step. float16 is no
    candidate: it is slower on every processor, and its small numbers vanish without loss scaling.
    """
    params = Hyperparameters()
    float32 = _step_seconds(build_model(params, image_shape, classes), give_up_after=math.inf)
    bfloat16 = _step_seconds(build_model(params, image_shape, classes, Precision.BFLOAT16), give_up_after=2 * float32)
    rates = {Precision.FLOAT32.value: PROBE_BATCH / float32, Precision.BFLOAT16.value: PROBE_BATCH / bfloat16}
    return ProbeResult(Precision.BFLOAT16 if bfloat16 < float32 else Precision.FLOAT32, rates)


def _seed_layers(model: keras.Model, seed: int, epoch: int) -> None:
    """Let what layers draw in an epoch depend on nothing that was drawn before."""
    random = generator(seed, epoch, "dropout")
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.seed_generator.state.assign(random.integers(2**32, size=2, dtype=np.uint32))


def _batches(split: Split, size: int) -> Callable[[npt.NDArray[np.int64], Augmentation | None], tf.data.Dataset]:
    """Return what gathers batches, in an order, from images that stay in memory as bytes: each batch is a copy."""
    with tf.device("CPU"):
        images, labels = tf.constant(split.images), tf.constant(split.labels)
    # Without tf.data's tuning thread: it sleeps in doubling intervals, and the end of an iteration waits for it. A fit
    # would last up to twice as long as its work.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1

    # TensorFlow keeps every function that it was given until the next trial: this one, and no epoch's draws.
    current: Augmentation | None = None

    def changed(index: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        assert current is not None
        return current.apply(split.images, index)

    def gather(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if current is None:
            return tf.gather(images, index), tf.gather(labels, index)
        found = tf.numpy_function(changed, [index], tf.uint8, stateful=False)
        return tf.ensure_shape(found, (None, *split.images.shape[1:])), tf.gather(labels, index)

    # Nothing in it is for AutoGraph, which would leave a file of code in the temporary folder.
    gathered = tf.autograph.experimental.do_not_convert(gather)

    def batches(order: npt.NDArray[np.int64], augmentation: Augmentation | None) -> tf.data.Dataset:
        nonlocal current
        current = augmentation
        return tf.data.Dataset.from_tensor_slices(order).batch(size).map(gathered).with_options(options)

    return batches


def _run_epoch(
    model: keras.Model, number: int, batches: tf.data.Dataset, images: int, validation: tf.data.Dataset | None
) -> tuple[Epoch, Arrays, Arrays]:
    """Train an epoch; return its figures, the weights to go on with, and those to judge and to keep."""
    started = time.perf_counter()
    weights: Arrays = []
    callbacks: list[keras.callbacks.Callback] = [keras.callbacks.TerminateOnNaN()]
    if model.optimizer.use_ema:
        # At the end of its `fit` Keras writes the averages in the place of the weights.
        keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: weights.extend(model.get_weights()))
        callbacks.append(keep)
    trained = model.fit(
        batches, epochs=number, initial_epoch=number - 1, callbacks=callbacks, shuffle=False, verbose=0
    ).history
    seconds = time.perf_counter() - started
    averaged = model.get_weights()
    weights = weights or averaged
    # oneDNN's ReLU turns NaN into zero, so that the loss of a model with such weights can be finite again.
    finite = all(np.isfinite(each).all() for each in weights)
    train_loss = float(trained["loss"][0]) if finite else math.nan
    validated = {"loss": math.nan, "accuracy": math.nan}
    if validation is not None and math.isfinite(train_loss):
        validated = model.evaluate(validation, return_dict=True, verbose=0)
    if weights is not averaged:
        model.set_weights(weights)
    epoch = Epoch(
        epoch=number,
        train_loss=train_loss,
        train_accuracy=float(trained["accuracy"][0]),
        val_loss=float(validated["loss"]),
        val_accuracy=float(validated["accuracy"]),
        seconds=seconds,
        images_per_second=images / seconds,
    )
    return epoch, weights, averaged


def _step_seconds(
    model: keras.Model, give_up_after: float, batch: int = PROBE_BATCH, steps: int = PROBE_STEPS
) -> float:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch, *model.input_shape[1:]), dtype=np.uint8)
    labels = random.integers(0, model.output_shape[-1], batch)
    model.train_on_batch(images, labels)  # Traces the graph; no measure of a step.
    seconds: list[float] = []
    while len(seconds) < steps and (not seconds or seconds[-1] <= give_up_after):
        started = time.perf_counter()
        model.train_on_batch(images, labels)
        seconds.append(time.perf_counter() - started)
    return median(seconds)
