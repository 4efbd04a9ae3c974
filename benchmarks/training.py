"""One worker's training against bare `model.fit`, over batch sizes and filter counts, at one thread each.

`python -m benchmarks.training` trains on Fashion-MNIST (FASHION_MNIST_DIR or Keras's cache). Each measurement has a
process of its own; both sides are taken in turn, so that a drift of the machine's speed meets both. Seconds are those
of the processor, which other work on the machine hardly touches: with one thread, what a quiet machine would take.
Beside the rates stands the share of the machine's own peak: what a large matrix product reaches on one thread at the
same precision.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from unittest import mock

import typer

from benchmarks.processes import in_a_fresh_process
from benchmarks.results import FOLDER, Line, publish, table_of
from experiments._entry import run
from fashion_study.libraries import MALLOC, import_without_stderr
from fashion_study.trial import Epoch, Hyperparameters, Precision

BATCHES = (64, 128, 256, 512, 1024)
FILTERS = {"small": (16, 32, 32), "blog": (32, 64, 64), "large": (48, 96, 96)}
# The short form: the blog's filters, at the batches that stand in the lines of the full form, too.
LINE_SIZE, LINE_BATCHES = "blog", (64, 512)
IMAGES, SHORT_IMAGES = 10_000, 4_000
GOAL = "1.5x"
PEAK_SIZE, PEAK_ROUNDS = 2048, 7


@dataclass(frozen=True)
class CheckContext:
    """One configuration that both sides train: the network's filters, the batch size, the precision, how much of it."""

    size: str
    batch_size: int
    precision: Precision
    images: int
    epochs: int

    @property
    def params(self) -> Hyperparameters:
        """Return the hyperparameters; all but these are the blog's."""
        first, second, third = FILTERS[self.size]
        return Hyperparameters(
            filters_1=first, filters_2=second, filters_3=third, batch_size=self.batch_size, epochs=self.epochs
        )


def main(
    short: Annotated[bool, typer.Option("--short", help="The blog's filters at two batch sizes, once each.")] = False,
    precision: Annotated[Precision, typer.Option(help="Of both sides.")] = Precision.FLOAT32,
    images: Annotated[int | None, typer.Option(help="Training images of an epoch; 10,000, in short 4,000.")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="How often each side is measured; 3, in short once.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "training.json",
) -> None:
    """Measure every case on both sides in turn and print the ratios."""
    sizes, batches = ((LINE_SIZE,), LINE_BATCHES) if short else (tuple(FILTERS), BATCHES)
    rounds = rounds or (1 if short else 3)
    images = images or (SHORT_IMAGES if short else IMAGES)
    peak = in_a_fresh_process(_peak, precision)
    title = f"images/s of one thread, {precision}; peak {peak / 1e9:,.0f} GFLOP/s"
    table = table_of(title, "batch", "bare model.fit", "worker", "ratio", "bare of peak", "worker of peak")
    rows = []
    for size in sizes:
        for batch in batches:
            row = _compared(CheckContext(size, batch, precision, images, 3 if short else 4), rounds, peak)
            rows.append(row)
            table.add_row(
                size,
                str(batch),
                f"{row['bare']:,.0f}",
                f"{row['worker']:,.0f}",
                f"{row['ratio']:.2f}",
                f"{row['bare_of_peak']:.0%}",
                f"{row['worker_of_peak']:.0%}",
            )
            print(f"{size} {batch}: {row['ratio']:.2f}", file=sys.stderr)
    publish("training", [table], _lines(rows), {"peak_flops": peak, "rows": rows}, rounds, output)


def _lines(rows: list[dict[str, Any]]) -> list[Line]:
    return [
        Line(
            f"a worker against bare model.fit, {row['precision']}, batch {row['batch_size']}",
            f"{row['ratio']:.2f}x",
            GOAL,
        )
        for row in rows
        if row["size"] == LINE_SIZE and row["batch_size"] in LINE_BATCHES
    ]


def _compared(case: CheckContext, rounds: int, peak: float) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"bare": [], "worker": []}
    for _ in range(rounds):
        rates["bare"].append(in_a_fresh_process(_bare, case))
        with mock.patch.dict(os.environ, MALLOC):
            rates["worker"].append(in_a_fresh_process(_worker, case))
    bare, worker = median(rates["bare"]), median(rates["worker"])
    per_image = training_flops(case.params)
    return asdict(case) | {
        "rates": rates,
        "bare": bare,
        "worker": worker,
        # Of the pairs: what slows the machine for a while meets both sides of one.
        "ratio": median(ours / theirs for theirs, ours in zip(rates["bare"], rates["worker"], strict=True)),
        "bare_of_peak": bare * per_image / peak,
        "worker_of_peak": worker * per_image / peak,
    }


def training_flops(params: Hyperparameters, classes: int = 10) -> float:
    """Count the floating point operations of a training step per image: two for each multiply-add.

    Forward, gradient of the weights and gradient of the inputs cost the same; the first layer needs no last one.
    """
    first = 26 * 26 * 9 * params.filters_1
    rest = 11 * 11 * 9 * params.filters_1 * params.filters_2 + 3 * 3 * 9 * params.filters_2 * params.filters_3
    dense = 9 * params.filters_3 * params.dense_units + params.dense_units * classes
    return 2.0 * (2 * first + 3 * (rest + dense))


def _bare(case: CheckContext) -> float:
    import_without_stderr("benchmarks.bare_fit")
    from benchmarks.bare_fit import bare_rate
    from fashion_study.data.catalog import load_dataset, locate

    data = load_dataset(locate("fashion-mnist", None), case.images)
    return bare_rate(case.params, case.precision, 1, data, clock=time.process_time)


def _worker(case: CheckContext) -> float:
    import_without_stderr("fashion_study.training.fit")
    import keras

    from fashion_study.data.catalog import load_dataset, locate
    from fashion_study.training.fit import configure, fit
    from fashion_study.training.model import build_model

    configure(threads=1)
    keras.utils.set_random_seed(0)
    data = load_dataset(locate("fashion-mnist", None), case.images)
    ends = [time.process_time()]

    def on_epoch(_epoch: Epoch) -> bool:
        ends.append(time.process_time())
        return True

    # Without validation, so that nothing but training lies between two ends.
    fit(
        build_model(case.params, data.image_shape, len(data.class_names), case.precision),
        data.train,
        None,
        case.params,
        0,
        on_epoch,
    )
    seconds = [end - start for start, end in pairwise(ends)]
    return len(data.train.labels) / median(seconds[1:])


def _peak(precision: Precision) -> float:
    """Return the floating point operations per second of a large matrix product on one thread."""
    # Not TensorFlow itself: this lets it use oneDNN where it would not by itself.
    import_without_stderr("fashion_study.training.fit")
    import tensorflow as tf

    from fashion_study.training.fit import configure

    configure(threads=1)
    left, right = (
        tf.cast(tf.random.normal((PEAK_SIZE, PEAK_SIZE)), tf.dtypes.as_dtype(precision.value)) for _ in range(2)
    )

    def multiply() -> None:
        tf.matmul(left, right)[0, 0].numpy()  # One number waits for the whole product, and copies none of it.

    return 2.0 * PEAK_SIZE**3 / median(_seconds(multiply))


def _seconds(call: Callable[[], object]) -> Iterator[float]:
    call()
    for _ in range(PEAK_ROUNDS):
        started = time.process_time()
        call()
        yield time.process_time() - started


if __name__ == "__main__":
    run(main)
