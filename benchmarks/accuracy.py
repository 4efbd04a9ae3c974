"""The accuracy of this project's training layers against that of Keras's stock layers, paired over seeds.

`python -m benchmarks.accuracy` trains the blog's network on Fashion-MNIST (FASHION_MNIST_DIR or Keras's cache) with
either kind of layers, from the same weights and over the same images in the same order, two processes at once with one
thread each. What is compared is what a study compares: the float32 model on the validation images.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated
from unittest import mock

import typer

from benchmarks.results import FOLDER, points_line, publish, table_of
from experiments._entry import run
from fashion_study.data.catalog import load_dataset, locate
from fashion_study.data.dataset import ImageShape
from fashion_study.libraries import MALLOC, import_without_stderr
from fashion_study.statistics import student_interval
from fashion_study.trial import DataSource, Hyperparameters, Precision, trial_seed

if TYPE_CHECKING:
    import keras

PROCESSES = 2
GOAL = "below 0.3 points"


@dataclass(frozen=True)
class Order:
    """One training in a process; `ours` says with which layers."""

    seed: int
    ours: bool
    params: Hyperparameters
    precision: Precision
    source: DataSource
    images: int


@dataclass(frozen=True)
class Pair:
    """The accuracies that one seed reached with both kinds of layers."""

    seed: int
    ours: float
    stock: float

    @property
    def points(self) -> float:
        """Return by how many points ours is higher."""
        return 100 * (self.ours - self.stock)


def main(
    precision: Annotated[Precision, typer.Option(help="Of both sides.")] = Precision.FLOAT32,
    seeds: Annotated[int, typer.Option(min=2, help="Pairs.")] = 5,
    images: Annotated[int, typer.Option(help="Training images.")] = 20_000,
    epochs: Annotated[int, typer.Option(min=1, help="Of each training.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Of both sides.")] = 5e-4,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "accuracy.json",
) -> None:
    """Train every seed with both kinds of layers, and print the differences and what they leave open."""
    params = Hyperparameters(batch_size=batch_size, epochs=epochs, learning_rate=learning_rate)
    source = locate("fashion-mnist")
    orders = [
        Order(trial_seed(0, index), ours, params, precision, source, images)
        for index in range(seeds)
        for ours in (True, False)
    ]
    os.environ.update(MALLOC)
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        accuracies = list(pool.map(accuracy, orders))
    pairs = [
        Pair(order.seed, ours, stock)
        for order, ours, stock in zip(orders[::2], accuracies[::2], accuracies[1::2], strict=True)
    ]
    table = table_of(f"validation accuracy, {precision}, {images:,} images, {epochs} epochs", "ours", "stock", "points")
    for pair in pairs:
        table.add_row(f"seed {pair.seed}", f"{pair.ours:.4f}", f"{pair.stock:.4f}", f"{pair.points:+.2f}")
    differences = [pair.points for pair in pairs]
    line = points_line(f"accuracy, our training layers less Keras's, {precision}", differences, GOAL)
    figures = {
        "precision": precision.value,
        "images": images,
        "params": params.model_dump(),
        "pairs": [asdict(pair) for pair in pairs],
        "mean_points": mean(differences),
        "interval_points": list(student_interval(differences)),
    }
    publish("accuracy", [table], [line], figures, seeds, output)


def accuracy(order: Order) -> float:
    """Train as a worker does, on one thread, and return the validation accuracy of the float32 model."""
    import_without_stderr("fashion_study.training.fit")
    import keras

    from fashion_study.training.evaluation import evaluate
    from fashion_study.training.fit import configure, fit
    from fashion_study.training.model import to_float32

    configure(threads=1)
    keras.utils.clear_session()
    keras.utils.set_random_seed(order.seed)
    data = load_dataset(order.source, order.images)
    model = _model(order, data.image_shape, len(data.class_names))
    # Without validation on the way: it is the end that is compared.
    fit(model, data.train, None, order.params, order.seed, lambda _epoch: True)
    return evaluate(to_float32(model, order.params), data.validation, data.class_names).accuracy


def _model(order: Order, image_shape: ImageShape, classes: int) -> "keras.Model":
    import tensorflow as tf

    from fashion_study.training.layers import TrainingConvPool2D
    from fashion_study.training.model import build_model

    # The builder takes its own layers where it sees no GPU, the stock ones where it sees one, with all else alike.
    gpus = [] if order.ours else ["a GPU"]
    with mock.patch.object(tf.config, "list_physical_devices", return_value=gpus):
        model = build_model(order.params, image_shape, classes, order.precision)
    if order.ours != any(isinstance(layer, TrainingConvPool2D) for layer in model.layers):
        raise RuntimeError("the builder chose its layers in another way: this would compare something with itself")
    return model


if __name__ == "__main__":
    run(main)
