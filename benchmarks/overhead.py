"""The cost of a study beside its training: the coordinator's work, the start, the logging of models.

`python -m benchmarks.overhead` runs toy trials, which train nothing, through the real coordinator, real worker
processes and both stores, and the same trials through the stock libraries' own bookkeeping, in turn. Costs are CPU time
of the one process. Trials of one epoch and of many tell what is a trial's and what an epoch's.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.first_epoch import first_epoch_seconds, model_logging_seconds, stock_logging_seconds, tensorflow_seconds
from benchmarks.processes import in_a_fresh_process, use_own_stores
from benchmarks.results import FOLDER, Line, publish
from experiments._entry import run
from fashion_study.executors.local import default_workers

WARM_UP, MANY_EPOCHS = 5, 20
TRIALS, SHORT_TRIALS = 60, 20
MODELS = 10
# The CPU seconds of some trials and the epochs that they had.
Run = tuple[float, int]


@dataclass(frozen=True)
class Cost:
    """CPU milliseconds."""

    per_trial: float
    per_epoch: float


def main(
    short: Annotated[bool, typer.Option("--short", help="Fewer trials.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often each is measured; 5, in short once.")] = None,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "overhead.json",
) -> None:
    """Measure everything in turn and print it beside its goal."""
    use_own_stores()
    trials, rounds = SHORT_TRIALS if short else TRIALS, rounds or (1 if short else 5)
    workers = default_workers()
    measured = [_round(trials, workers) for _ in range(rounds)]
    figures = {key: median(once[key] for once in measured) for key in measured[0]}
    publish("overhead", [], _lines(figures, workers), {"rounds": measured, "medians": figures}, rounds, output)


def _round(trials: int, workers: int) -> dict[str, float]:
    ours, stock = (_cost(function, trials) for function in (coordinator_cpu, stock_cpu))
    logged = in_a_fresh_process(model_logging_seconds, MODELS)
    return {
        "trial_ms": ours.per_trial,
        "stock_trial_ms": stock.per_trial,
        "epoch_ms": ours.per_epoch,
        "stock_epoch_ms": stock.per_epoch,
        "tensorflow_s": tensorflow_seconds(),
        "first_epoch_s": first_epoch_seconds("auto", workers),
        "first_epoch_float32_s": first_epoch_seconds("float32", workers),
        "first_epoch_float32_one_worker_s": first_epoch_seconds("float32", 1),
        "first_model_s": logged[0],
        "later_model_s": median(logged[1:]),
        "stock_model_s": in_a_fresh_process(stock_logging_seconds),
    }


def _cost(function: Callable[[int, int], Run], trials: int) -> Cost:
    """Tell a trial's cost from an epoch's by two runs with the same trials and other epochs."""
    one, many = (in_a_fresh_process(function, trials, epochs) for epochs in (1, MANY_EPOCHS))
    return cost_of(one, many, trials)


def cost_of(one: Run, many: Run, trials: int) -> Cost:
    """Solve two runs of so many trials for what a trial and what an epoch costs."""
    per_epoch = (many[0] - one[0]) / (many[1] - one[1])
    return Cost(1000 * (one[0] - per_epoch * one[1]) / trials, 1000 * per_epoch)


def coordinator_cpu(trials: int, epochs: int) -> Run:
    """Return the CPU seconds that a coordinator takes for so many toy trials, and the epochs that they had."""
    from benchmarks.toy_study import open_toy_study
    from fashion_study.executors.local import LocalExecutor
    from fashion_study.trial import WorkerSettings

    with tempfile.TemporaryDirectory() as folder:
        study = open_toy_study(Path(folder), epochs)
        settings = WorkerSettings(study.plan.source, None, 1, study.store.tracking_uri)
        workers = LocalExecutor(settings, default_workers(), Path(folder, "logs"), module="benchmarks.toy_worker")
        with closing(workers) as executor:
            study.run(WARM_UP, executor)
            known = _epochs(study)
            started = time.process_time()
            study.run(trials, executor)
            return time.process_time() - started, _epochs(study) - known


def stock_cpu(trials: int, epochs: int) -> Run:
    """Return the CPU seconds of the same with the stock libraries, and the epochs."""
    from benchmarks.reference_study import ReferenceStudy

    with tempfile.TemporaryDirectory() as folder:
        study = ReferenceStudy(Path(folder), epochs)
        study.run(WARM_UP)
        started = time.process_time()
        trained = study.run(trials)
        return time.process_time() - started, trained


def _epochs(study: Any) -> int:
    return sum(len(record.curve) for record in study.trial_storage.records())


def _lines(figures: dict[str, float], workers: int) -> list[Line]:
    start = f"{figures['first_epoch_s'] - figures['tensorflow_s']:+.1f} s"
    return [
        Line(
            "coordinator's CPU for a trial",
            f"{figures['trial_ms']:.0f} ms (stock libraries {figures['stock_trial_ms']:.0f})",
            "60 ms",
        ),
        Line(
            "coordinator's CPU for an epoch",
            f"{figures['epoch_ms']:.1f} ms (stock libraries {figures['stock_epoch_ms']:.1f})",
            "8 ms",
        ),
        Line("import of TensorFlow alone", f"{figures['tensorflow_s']:.1f} s"),
        Line(
            f"command to first epoch, {workers} workers, precision probed, as by default",
            f"{figures['first_epoch_s']:.1f} s, {start}",
            "TensorFlow's import +2 s",
        ),
        Line("the same, float32 asked for", f"{figures['first_epoch_float32_s']:.1f} s"),
        Line("the same, float32 and one worker", f"{figures['first_epoch_float32_one_worker_s']:.1f} s"),
        Line("a worker's first model logged", f"{figures['first_model_s']:.2f} s", "0.3 s"),
        Line(
            "a later model logged",
            f"{figures['later_model_s']:.2f} s (mlflow.keras.log_model {figures['stock_model_s']:.1f})",
            "0.3 s",
        ),
    ]


if __name__ == "__main__":
    run(main)
