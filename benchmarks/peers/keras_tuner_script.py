"""KerasTuner with MLflow's callback for Keras, one run a trial.

`python -m benchmarks.peers.keras_tuner_script FOLDER`. More than one worker is what KerasTuner's guide on distributed
tuning says: the same script as a chief and as tuners (`benchmarks.peers.keras_tuner_workers`).
"""

import os
import sys
from typing import Any

import keras_tuner
import mlflow

from benchmarks.peers.task import Task, configure, open_experiment, read_task


def main(task: Task) -> None:
    """Be the chief, a tuner, or both."""
    configure(task)
    tuner = keras_tuner.Tuner(GivenTrials(task), LoggedNetwork(task), directory=task.folder, project_name="keras_tuner")
    if os.environ.get("KERASTUNER_TUNER_ID") == "chief":
        tuner.search()  # It trains nothing, and needs no images.
        return
    open_experiment(task)
    train, validation = task.images()
    tuner.search(*train, validation_data=validation, verbose=0)


class GivenTrials(keras_tuner.Oracle):  # type: ignore[misc]  # KerasTuner has no annotations.
    """Propose the trials of the task, in their order."""

    def __init__(self, task: Task) -> None:
        super().__init__(keras_tuner.Objective("val_accuracy", "max"), max_trials=len(task.trials))
        self._given = task.trials

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Return the values of a trial."""
        return {"status": "RUNNING", "values": dict(self._given[int(trial_id)])}


class LoggedNetwork(keras_tuner.HyperModel):  # type: ignore[misc]  # KerasTuner has no annotations.
    """Build the network and train it inside an MLflow run."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._task = task

    def build(self, hp: Any) -> Any:
        """Declare the space and build the network."""
        from benchmarks.peers.network import build_network

        params = {
            "filters_1": hp.Int("filters_1", 16, 48, step=8),
            "filters_2": hp.Int("filters_2", 32, 96, step=8),
            "filters_3": hp.Int("filters_3", 32, 96, step=8),
            "learning_rate": hp.Float("learning_rate", 3e-5, 1e-2, sampling="log"),
        }
        hp.Choice("batch_size", [64, 128, 256, 512, 1024])
        hp.Int("epochs", 1, 20)
        return build_network(params, len(self._task.class_names), self._task.precision)

    def fit(self, hp: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Train, and log parameters, curves, confusion matrix and model."""
        from benchmarks.peers.network import confusion_figure

        with mlflow.start_run():
            mlflow.log_params(hp.values)
            kwargs["callbacks"] = [*kwargs["callbacks"], mlflow.keras.MlflowCallback()]
            history = model.fit(*args, batch_size=hp.get("batch_size"), epochs=hp.get("epochs"), **kwargs)
            figure = confusion_figure(model, kwargs["validation_data"], self._task.class_names)
            mlflow.log_figure(figure, "confusion_matrix.png")
            mlflow.keras.log_model(model, name="model")
        return history


if __name__ == "__main__":
    main(read_task(sys.argv))
