r"""The recording of learning curves of a Sobol design over a search space, for the replay in `benchmarks.search`.

`python -m benchmarks.record_curves` trains 200 configurations and the baseline for 20 epochs on 20,000 images of
Fashion-MNIST (FASHION_MNIST_DIR or Keras's cache): two hours of processor time where bfloat16 is fast, at the lowest
priority. Stop it whenever you like: the same command goes on where it ended. The configurations are trained in the
order of the sequence, so that whatever is recorded so far is a fair design too.

The search space is the YAML file beside the table. A table of another one, for a check of what was chosen on the first:

    python -m benchmarks.record_curves --dataset digits --configurations 100 --images 1000 \
        --output benchmarks/small.jsonl.gz

In the background, where a session of its own also gets the lowest weight:

    setsid nohup python -m benchmarks.record_curves > curves.log 2>&1 & echo 19 > /proc/$!/autogroup
"""

import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from scipy.stats import qmc

from benchmarks.curves import (
    TABLE,
    Curve,
    Design,
    append_curve,
    append_session,
    continue_table,
    recorded_sessions,
    space_file,
)
from benchmarks.results import surroundings
from experiments._entry import run
from fashion_study.data.catalog import load_dataset, locate
from fashion_study.data.dataset import Dataset
from fashion_study.errors import BadInputError
from fashion_study.executors.local import default_workers
from fashion_study.libraries import MALLOC
from fashion_study.space.file import load_space
from fashion_study.space.space import Categorical, Float, Int, Parameter, SearchSpace
from fashion_study.trial import TRAINING_VERSION, DataSource, Epoch, Hyperparameters, ParamValue, Precision, trial_seed

SOBOL_SEED = 0
LOWEST_PRIORITY = 19
PR_SET_PDEATHSIG = 1  # From <sys/prctl.h>.

DatasetName = Literal["fashion-mnist", "digits"]


@dataclass(frozen=True)
class Order:
    """One curve to be trained in a process."""

    place: int
    params: dict[str, ParamValue]
    hyperparameters: Hyperparameters
    seed: int
    precision: Precision
    source: DataSource
    train_images: int


def main(
    configurations: Annotated[int, typer.Option(min=1, help="How many, beside the baseline.")] = 200,
    dataset: Annotated[DatasetName, typer.Option(help="The digits to try it out.")] = "fashion-mnist",
    images: Annotated[int, typer.Option(help="Training images.")] = 20_000,
    precision: Annotated[
        Precision | None, typer.Option(help="Of the training step: what is fast here. By default the table's last one.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = default_workers(),
    output: Annotated[Path, typer.Option(help="The table, begun or continued.")] = TABLE,
) -> None:
    """Train what the table lacks, in the order of the design."""
    precision = precision or last_precision(output)
    space = load_space(str(space_file(output)))
    source = locate(dataset)
    data = load_dataset(source, images)
    design = Design(
        space=space.name,
        space_digest=space.digest,
        epochs=space.max_epochs,
        data_digest=source.digest,
        train_images=images,
        split_digest=data.split_digest,
        seed=SOBOL_SEED,
    )
    with _sole_writer(output):
        recorded = continue_table(output, design)
        points = design_points(space, configurations, SOBOL_SEED)
        orders = [
            Order(
                place,
                point,
                space.hyperparameters(space.baseline | point).model_copy(update={"epochs": design.epochs}),
                trial_seed(SOBOL_SEED, place),
                precision,
                source,
                images,
            )
            for place, point in enumerate(points)
            if place not in recorded
        ]
        print(f"{len(recorded)} of {len(points)} recorded in {output}; {precision}", flush=True)
        if orders:
            append_session(output, _provenance(precision))
            _record(orders, workers, output)


def last_precision(path: Path) -> Precision:
    """Return the precision of a table's last recording, float32 where there is none."""
    sessions = recorded_sessions(path)
    return Precision(sessions[-1]["precision"]) if sessions else Precision.FLOAT32


def _provenance(precision: Precision) -> dict[str, Any]:
    attrs = surroundings() | {"training_version": TRAINING_VERSION, "precision": precision.value}
    del attrs["argv"]  # It may name folders of this machine, and the table is published.
    return attrs


def design_points(space: SearchSpace, count: int, seed: int) -> list[dict[str, ParamValue]]:
    """Return the baseline and the first `count` points of a scrambled Sobol sequence, without their epochs.

    Each point costs the same and is trained to the space's most epochs, so that its curve holds every shorter trial.
    """
    searched = {name: parameter for name, parameter in space.parameters.items() if name != "epochs"}
    # Drawn as a power of two, as SciPy wants it: the first points are the same ones for every larger power.
    unit = qmc.Sobol(len(searched), scramble=True, rng=seed).random_base2((count - 1).bit_length())[:count]
    baseline = {name: space.baseline[name] for name in searched}
    drawn = [
        {name: _value(parameter, share) for (name, parameter), share in zip(searched.items(), row, strict=True)}
        for row in unit
    ]
    return [baseline, *drawn]


def _value(parameter: Parameter, share: float) -> ParamValue:
    """Turn a share from 0 to 1 (excluded) into a legal value, each whole number and each choice alike."""
    match parameter:
        case Categorical(choices=choices):
            return choices[int(share * len(choices))]
        case Int(log=False) | Float(step=float()):
            step = parameter.step or 1  # Only a Float can be without, and here it is not.
            value = parameter.low + step * int(share * (round((parameter.high - parameter.low) / step) + 1))
            return value if isinstance(parameter, Int) else float(f"{value:.12g}")
        case Float(log=True):
            low, high = np.log(parameter.low), np.log(parameter.high)
            return float(f"{np.exp(low + share * (high - low)):.4g}")
        case _:
            raise BadInputError(
                f"found {parameter.type} parameters; the design knows plain Int, log or stepped Float, Categorical."
            )


@contextmanager
def _sole_writer(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInputError(
                f"{path}: another process records into it. Wait for it, or name another --output."
            ) from None
        yield


def _record(orders: list[Order], workers: int, output: Path) -> None:
    """Train every order at the lowest priority and write each down when it is done."""
    os.nice(LOWEST_PRIORITY)
    os.environ.update(MALLOC)
    started = time.monotonic()
    # One process for all of a worker's curves: with a `max_tasks_per_child` Python 3.11's pool stands still when the
    # first ones have had theirs.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=_end_with_the_recorder,
        initargs=(os.getpid(),),
    )
    try:
        futures: list[Future[Curve]] = [pool.submit(_train, order) for order in orders]
        for done, future in enumerate(as_completed(futures), start=1):
            curve = future.result()
            append_curve(output, curve)
            left = (time.monotonic() - started) / done * (len(orders) - done)
            print(f"{_line(curve)}; {len(orders) - done} to go, about {timedelta(seconds=round(left))}", flush=True)
    finally:
        # Stopped, it waits for the curves that are being trained, not for hundreds that are not begun.
        pool.shutdown(cancel_futures=True)


def _line(curve: Curve) -> str:
    reached = "diverged" if curve.is_diverged else f"{curve.accuracy[-1]:.4f}"
    return f"{curve.place:03d}: {reached} after {len(curve.accuracy)} epochs, {sum(curve.seconds):.0f} s"


def _end_with_the_recorder(recorder: int) -> None:
    """Let a killed recorder leave nothing behind, and Ctrl-C end the epochs that run."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != recorder:  # It ended before that was asked for.
        os._exit(1)


def _train(order: Order) -> Curve:
    """Train one configuration as a worker of a study does, on one thread."""
    from fashion_study.libraries import import_without_stderr

    import_without_stderr("fashion_study.training.fit")
    import keras

    from fashion_study.training.fit import configure, fit
    from fashion_study.training.model import build_model

    configure(threads=1)
    keras.utils.clear_session()
    keras.utils.set_random_seed(order.seed)
    data = _data(order.source, order.train_images)
    epochs: list[Epoch] = []
    # Not the time on the wall: the machine has other work, and a curve should not depend on it.
    clock = [time.process_time()]

    def on_epoch(epoch: Epoch) -> bool:
        epochs.append(epoch)
        clock.append(time.process_time())
        return True

    images, classes = len(data.train.labels), len(data.class_names)
    model = build_model(order.hyperparameters, data.image_shape, classes, order.precision, images=images)
    outcome = fit(model, data.train, data.validation, order.hyperparameters, order.seed, on_epoch)
    if len(outcome.epochs) > len(epochs):  # The one in which it diverged is not reported.
        clock.append(time.process_time())
    return Curve(
        place=order.place,
        params=order.params,
        seed=order.seed,
        accuracy=tuple(round(epoch.val_accuracy, 4) for epoch in epochs),
        loss=tuple(round(epoch.val_loss, 4) for epoch in epochs),
        seconds=tuple(round(seconds, 2) for seconds in np.diff(clock).tolist()),
    )


@cache
def _data(source: DataSource, train_images: int) -> Dataset:
    return load_dataset(source, train_images)


if __name__ == "__main__":
    run(main)
