"""The flattery of the best epoch: how far its validation accuracy is above what the same model reaches elsewhere.

`python -m benchmarks.best_epoch` trains the blog's network on images of Fashion-MNIST (FASHION_MNIST_DIR or Keras's
cache), two processes at once with one thread each. After each epoch the model predicts the validation images, which
choose the epoch as in a study, and as many images that nothing else has seen: they are taken from the study's training
images. The holdout is not read.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Annotated

import numpy as np
import typer

from benchmarks.results import FOLDER, points_line, publish, table_of
from experiments._entry import run
from fashion_study.data.catalog import load_dataset, locate
from fashion_study.libraries import MALLOC, import_without_stderr
from fashion_study.trial import DataSource, Epoch, Hyperparameters, trial_seed

PROCESSES = 2


@dataclass(frozen=True)
class Order:
    """One training in a process."""

    seed: int
    params: Hyperparameters
    source: DataSource
    images: int


@dataclass(frozen=True)
class Curves:
    """The accuracies after each epoch on the images that choose it and on the unseen ones, in percent."""

    chosen_by: tuple[float, ...]
    unseen: tuple[float, ...]

    @property
    def best(self) -> int:
        """Return the index of the chosen epoch."""
        return self.chosen_by.index(max(self.chosen_by))

    @property
    def flattery(self) -> float:
        """Return by how many points the chosen epoch is above the unseen images, beyond what the other epochs are."""
        above = [own - other for own, other in zip(self.chosen_by, self.unseen, strict=True)]
        return above.pop(self.best) - mean(above)

    @property
    def gain(self) -> float:
        """Return by how many points the chosen epoch is better than the last one, on the unseen images."""
        return self.unseen[self.best] - self.unseen[-1]


def main(
    seeds: Annotated[int, typer.Option(min=2, help="Trainings.")] = 10,
    images: Annotated[int, typer.Option(max=40_000, help="Training images.")] = 20_000,
    epochs: Annotated[int, typer.Option(min=2, help="Of each training.")] = 12,
    learning_rate: Annotated[float, typer.Option(help="Of all.")] = 1e-3,
    decay: Annotated[float, typer.Option(help="Of all.")] = 1e-6,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "best_epoch.json",
) -> None:
    """Train every seed, and print how much the chosen epoch flatters and what it gains."""
    params = Hyperparameters(batch_size=64, epochs=epochs, learning_rate=learning_rate, decay=decay)
    source = locate("fashion-mnist")
    orders = [Order(trial_seed(0, index), params, source, images) for index in range(seeds)]
    os.environ.update(MALLOC)
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        curves = list(pool.map(trained, orders))
    title = (
        f"{images:,} images, {epochs} epochs, learning rate {learning_rate:g}, decay {decay:g}: accuracies in percent"
    )
    table = table_of(title, "best epoch", "validation", "unseen", "last epoch", "unseen", "flattery", "gain")
    for order, each in zip(orders, curves, strict=True):
        shown = (each.chosen_by[each.best], each.unseen[each.best], each.chosen_by[-1], each.unseen[-1])
        points = (f"{each.flattery:+.2f}", f"{each.gain:+.2f}")
        table.add_row(f"seed {order.seed}", str(each.best + 1), *(f"{value:.2f}" for value in shown), *points)
    lines = [
        points_line("validation accuracy of the best epoch above unseen images", [each.flattery for each in curves]),
        points_line("best epoch above the last one, on unseen images", [each.gain for each in curves]),
    ]
    figures = {"params": params.model_dump(), "images": images, "curves": [vars(each) for each in curves]}
    publish("best_epoch", [table], lines, figures, seeds, output)


def trained(order: Order) -> Curves:
    """Train as a worker does, on one thread, and return what the model reached after each epoch."""
    import_without_stderr("fashion_study.training.fit")
    import keras

    from fashion_study.training.fit import configure, fit
    from fashion_study.training.model import build_model

    configure(threads=1)
    keras.utils.set_random_seed(order.seed)
    data = load_dataset(order.source)
    shuffled = np.random.default_rng(order.seed).permutation(len(data.train.labels))
    own, unseen = (
        data.train.take(places)
        for places in (shuffled[: order.images], shuffled[order.images :][: len(data.validation.labels)])
    )
    model = build_model(order.params, data.image_shape, len(data.class_names), images=order.images)
    chosen_by, elsewhere = [], []

    def on_epoch(epoch: Epoch) -> bool:
        predicted = model.predict(unseen.images, batch_size=1000, verbose=0).argmax(axis=1)
        chosen_by.append(100 * epoch.val_accuracy)
        elsewhere.append(100 * float(np.mean(predicted == unseen.labels)))
        return True

    fit(model, own, data.validation, order.params, order.seed, on_epoch)
    return Curves(tuple(chosen_by), tuple(elsewhere))


if __name__ == "__main__":
    run(main)
