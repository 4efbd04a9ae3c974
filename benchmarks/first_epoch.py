"""From the command to the first epoch, and from a trained model to a logged one, in real processes."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUDY = (
    "-m",
    "experiments.run_study",
    "--space",
    "smoke",
    "--limit-train",
    "1000",
    "--pruner",
    "none",
    "--finalists",
    "0",
)


def tensorflow_seconds() -> float:
    """Return how long an import of TensorFlow takes alone, the interpreter's own start included."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import tensorflow"], check=True, capture_output=True)
    return time.perf_counter() - started


def first_epoch_seconds(precision: str, workers: int) -> float:
    """Return how long a tiny study takes from its command to the start of its first epoch, one trial a worker.

    That is when the epoch is told of, less its training and its validation; the latter is what lies between the first
    epoch and the second beside the second's training.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*STUDY, "--precision", precision, "--store", folder]
        arguments += ["--trials", str(workers), "--workers", str(workers)]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        started = time.perf_counter()
        command = [sys.executable, *arguments]
        printed: list[str] = []
        told: dict[tuple[int, int], float] = {}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as study:
            assert study.stdout is not None
            for line in study.stdout:
                printed.append(line)
                if found := re.search(r"trial (\d+) epoch (\d+) of ", line):
                    told[int(found[1]), int(found[2])] = time.perf_counter() - started
        if study.returncode or not told:
            shown = "some" if told else "no"
            raise RuntimeError(f"the study ended with {study.returncode} and {shown} epochs:\n{''.join(printed[-40:])}")
        # Some trials have one epoch alone.
        end, trial = min((end, trial) for (trial, epoch), end in told.items() if epoch == 1 and (trial, 2) in told)
        first, second, *_ = _training_seconds(Path(folder), trial)
        return end - first - (told[trial, 2] - end - second)


def _training_seconds(store: Path, trial: int) -> list[float]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.kind = 'trial' and tags.trial = '{trial}'")
    points = client.get_metric_history(run.info.run_id, "epoch_seconds")
    return [point.value for point in sorted(points, key=lambda point: point.step)]


def model_logging_seconds(times: int) -> list[float]:
    """Return how long the logging of each of so many models took in one worker."""
    from fashion_study.store.store import open_store
    from fashion_study.training.fit import configure
    from fashion_study.training.model import build_model, to_float32
    from fashion_study.trial import Hyperparameters
    from fashion_study.worker.record import record_model

    configure(threads=1)
    params = Hyperparameters()
    model = to_float32(build_model(params, (28, 28, 1), 10), params)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        client = store.client()
        experiment = store.experiment_id(client, "digits")
        seconds = []
        for _ in range(times):
            run_id = client.create_run(experiment).info.run_id
            started = time.perf_counter()
            record_model(client, run_id, model, params)
            seconds.append(time.perf_counter() - started)
        return seconds


def stock_logging_seconds() -> float:
    """Return how long MLflow's own call takes for the same model, with its defaults."""
    import mlflow

    from fashion_study.training.fit import configure
    from fashion_study.training.model import build_model, to_float32
    from fashion_study.trial import Hyperparameters

    configure(threads=1)
    params = Hyperparameters()
    model = to_float32(build_model(params, (28, 28, 1), 10), params)
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("stock", Path(folder, "artifacts").as_uri()))
        with mlflow.start_run():
            started = time.perf_counter()
            mlflow.keras.log_model(model, name="model")
            return time.perf_counter() - started
