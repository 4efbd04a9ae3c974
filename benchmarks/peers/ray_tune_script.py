"""Ray Tune with its MLflow callback, as many trials at once as there are cores, which is Ray's own default.

`python -m benchmarks.peers.ray_tune_script FOLDER`.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read when Ray is imported; a benchmark reports to nobody.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.search.basic_variant import BasicVariantGenerator

from benchmarks.peers.task import EXPERIMENT, Task, configure, open_experiment, read_task

if TYPE_CHECKING:
    from benchmarks.peers.task import Split

SPACE = {
    "filters_1": tune.qrandint(16, 48, 8),
    "filters_2": tune.qrandint(32, 96, 8),
    "filters_3": tune.qrandint(32, 96, 8),
    "learning_rate": tune.loguniform(3e-5, 1e-2),
    "batch_size": tune.choice([64, 128, 256, 512, 1024]),
    "epochs": tune.randint(1, 21),
}


def main(task: Task) -> None:
    """Train the trials of the task, each on one core."""
    open_experiment(task)
    ray.init(num_cpus=task.workers, include_dashboard=False, log_to_driver=False)
    train_images, validation = task.images()
    tuner = tune.Tuner(
        tune.with_parameters(train, task=task, train_images=train_images, validation=validation),
        param_space=SPACE,
        tune_config=tune.TuneConfig(
            search_alg=BasicVariantGenerator(points_to_evaluate=[dict(trial) for trial in task.trials]),
            num_samples=len(task.trials),
        ),
        run_config=tune.RunConfig(
            storage_path=str(task.folder / "ray"),
            callbacks=[LogWithFiles(tracking_uri=task.tracking_uri, experiment_name=EXPERIMENT, save_artifact=True)],
            verbose=0,
        ),
    )
    if errors := tuner.fit().errors:
        raise RuntimeError(f"a trial failed: {errors[0]}")


class LogWithFiles(MLflowLoggerCallback):
    """Log what a trial saved as well: the stock callback uploads the driver's folder, which has no checkpoints."""

    def log_trial_save(self, trial: Any) -> None:
        """Put the files of a trial's checkpoint onto its run."""
        self.mlflow_util.save_artifacts(run_id=self._trial_runs[trial], dir=trial.checkpoint.path)


def train(config: dict[str, Any], task: Task, train_images: "Split", validation: "Split") -> None:
    """Train one trial in a process of Ray's, and report every epoch; the last one brings the files."""
    configure(task)
    import keras
    import mlflow

    from benchmarks.peers.network import build_network, confusion_figure

    class Report(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no annotations.
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            if epoch + 1 < config["epochs"]:
                tune.report(logs)

    model = build_network(config, len(task.class_names), task.precision)
    history = model.fit(
        *train_images,
        batch_size=config["batch_size"],
        epochs=config["epochs"],
        validation_data=validation,
        callbacks=[Report()],
        verbose=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        confusion_figure(model, validation, task.class_names).savefig(Path(folder, "confusion_matrix.png"))
        mlflow.keras.save_model(model, str(Path(folder, "model")))
        last = {name: values[-1] for name, values in history.history.items()}
        tune.report(last, checkpoint=tune.Checkpoint.from_directory(folder))


if __name__ == "__main__":
    main(read_task(sys.argv))
