"""N workers of a study against N bare `model.fit` processes, on the same model, data, precision and threads.

`python -m benchmarks.workers` trains the baseline on Fashion-MNIST (FASHION_MNIST_DIR or Keras's cache), prints
images per second and writes them as JSON. A bare process is what a user would write: stock Keras layers, NumPy
arrays, `model.fit`. Both sides are taken twice in turn, so that a drift of the machine's speed meets both.
"""

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
import yaml

from benchmarks.processes import use_own_stores
from benchmarks.results import FOLDER, Line, publish, table_of
from experiments._entry import run
from fashion_study.config import StudyConfig
from fashion_study.executors.local import default_workers, threads_per_worker
from fashion_study.trial import Hyperparameters, Precision

ROUNDS = 2
GOAL = "1.5x"


def main(
    workers: Annotated[int, typer.Option(help="Processes on each side.")] = default_workers(),
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 512,
    epochs: Annotated[int, typer.Option(min=2, help="Epochs per process; the first one is not counted.")] = 4,
    images: Annotated[int, typer.Option(help="Training images.")] = 20_000,
    precision: Annotated[Precision, typer.Option(help="Of both sides.")] = Precision.FLOAT32,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "workers.json",
) -> None:
    """Measure both sides in turn and print their ratio."""
    use_own_stores()
    bare: list[float] = []
    study: list[float] = []
    for _ in range(ROUNDS):
        bare.append(_bare_rate(workers, batch_size, epochs, images, precision))
        study.append(_study_rate(workers, batch_size, epochs, images, precision))
    ratio = median(study) / median(bare)
    title = f"{workers} processes, batch {batch_size}, {precision}, {images:,} images, {epochs} epochs"
    table = table_of(title, "images/s together", "ratio")
    table.add_row("bare model.fit", ", ".join(f"{rate:,.0f}" for rate in bare), "1.00")
    table.add_row("workers of a study", ", ".join(f"{rate:,.0f}" for rate in study), f"{ratio:.2f}")
    line = Line(
        f"{workers} workers against as many bare model.fit, {precision}, batch {batch_size}", f"{ratio:.2f}x", GOAL
    )
    publish("workers", [table], [line], {"bare": bare, "study": study, "ratio": ratio}, ROUNDS, output)


def _bare_rate(workers: int, batch_size: int, epochs: int, images: int, precision: str) -> float:
    command = [sys.executable, "-m", "benchmarks.bare_fit", str(batch_size), str(epochs), str(images), precision]
    command.append(str(threads_per_worker(workers)))
    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(lambda _: _rate(command), range(workers)))


def _rate(command: list[str]) -> float:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{command[2]} ended with {answer.returncode}:\n{answer.stderr[-4000:]}")
    return float(answer.stdout)


def _study_rate(workers: int, batch_size: int, epochs: int, images: int, precision: Precision) -> float:
    """Run one trial per worker, alike but for a rate that costs nothing, and read the rates of their epochs."""
    from fashion_study.study.run import run_study

    fixed = Hyperparameters(batch_size=batch_size, epochs=epochs).model_dump()
    rate = fixed.pop("learning_rate")
    space = {
        "name": "same",
        "purpose": "Trials that cost the same.",
        "baseline": {"learning_rate": rate},
        "parameters": {
            "learning_rate": {"type": "float", "low": rate / 2, "high": rate * 2, "why": "It costs nothing."}
        },
        "fixed": fixed,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "same.yaml")
        path.write_text(yaml.safe_dump(space))
        started = time.time()
        result = run_study(
            StudyConfig(
                space=str(path),
                dataset="fashion-mnist",
                trials=workers,
                workers=workers,
                pruner="none",
                finalists=0,
                precision=precision.value,
                limit_train=images,
                store=Path(folder, "store"),
            )
        )
        client = result.store.client()
        first = min(
            entry.timestamp / 1000
            for record in result.records
            for entry in client.get_metric_history(str(record.run_id), "val_loss")
        )
        print(f"study: {first - started:.1f} s from its call to the end of the first epoch", file=sys.stderr)
        rates = (client.get_metric_history(str(record.run_id), "images_per_second") for record in result.records)
        return sum(median(entry.value for entry in history if entry.step > 1) for history in rates)


if __name__ == "__main__":
    run(main)
