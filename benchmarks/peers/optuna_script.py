"""Optuna with MLflow's autologging and Keras, as the three libraries' pages teach it.

`python -m benchmarks.peers.optuna_script FOLDER`. More than one worker is what Optuna's page on parallel runs says: the
same script several times over one study in a database.
"""

import subprocess
import sys
from typing import Any

import mlflow
import optuna
from optuna.study import MaxTrialsCallback
from optuna.trial import Trial, TrialState

from benchmarks.peers.task import Task, configure, open_experiment, read_task


def main(task: Task) -> None:
    """Enqueue the trials, open the parent run, and train, in this process or in several."""
    open_experiment(task)
    study = _study(task)
    for params in task.trials:
        study.enqueue_trial(params)
    with mlflow.start_run(run_name="study") as parent:
        if task.workers is None:
            work(task, parent.info.run_id)
        else:
            command = [sys.executable, "-m", "benchmarks.peers.optuna_script", str(task.folder), parent.info.run_id]
            processes = [subprocess.Popen(command) for _ in range(task.workers)]
            codes = [process.wait() for process in processes]
            if any(codes):
                raise RuntimeError("a worker failed")
        mlflow.log_metric("best_val_accuracy", study.best_value)


def work(task: Task, parent: str) -> None:
    """Train trials of the study until it has all of them."""
    configure(task)
    # Imported here, behind TensorFlow's settings.
    from benchmarks.peers.network import build_network, confusion_figure

    train, validation = task.images()
    mlflow.keras.autolog()

    def objective(trial: Trial) -> float:
        params: dict[str, Any] = {
            "filters_1": trial.suggest_int("filters_1", 16, 48, step=8),
            "filters_2": trial.suggest_int("filters_2", 32, 96, step=8),
            "filters_3": trial.suggest_int("filters_3", 32, 96, step=8),
            "learning_rate": trial.suggest_float("learning_rate", 3e-5, 1e-2, log=True),
            "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256, 512, 1024]),
            "epochs": trial.suggest_int("epochs", 1, 20),
        }
        with mlflow.start_run(run_name=f"trial_{trial.number}", nested=True, parent_run_id=parent):
            mlflow.log_params(params)
            model = build_network(params, len(task.class_names))
            history = model.fit(
                *train,
                batch_size=params["batch_size"],
                epochs=params["epochs"],
                validation_data=validation,
                callbacks=[],
                verbose=0,
            )
            mlflow.log_figure(confusion_figure(model, validation, task.class_names), "confusion_matrix.png")
            return float(history.history["val_accuracy"][-1])

    enough = MaxTrialsCallback(len(task.trials), states=(TrialState.COMPLETE, TrialState.RUNNING))
    _study(task).optimize(objective, n_trials=len(task.trials), callbacks=[enough])


def _study(task: Task) -> optuna.Study:
    storage = f"sqlite:///{task.folder / 'optuna.db'}"
    return optuna.create_study(storage=storage, study_name="peer", direction="maximize", load_if_exists=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        open_experiment(read_task(sys.argv))
        work(read_task(sys.argv), sys.argv[2])
    else:
        main(read_task(sys.argv))
