"""Optuna with MLflow's autologging and Keras, as the three libraries' pages teach it.

`python -m benchmarks.peers.optuna_script FOLDER`. More than one worker is what Optuna's page on parallel runs says: the
same script several times over one study in a database (`benchmarks.peers.optuna_workers`).
"""

import sys
from typing import Any

import mlflow
import optuna
from filelock import FileLock
from optuna.study import MaxTrialsCallback
from optuna.trial import Trial, TrialState

from benchmarks.peers.task import Task, configure, open_experiment, read_task


def main(task: Task) -> None:
    """Train trials of the study until it has all of them."""
    study, parent = begin(task, open_experiment(task))
    configure(task)
    # Imported here, behind TensorFlow's settings.
    import keras

    from benchmarks.peers.network import build_network, confusion_figure

    train, validation = task.images()
    mlflow.keras.autolog()

    def objective(trial: Trial) -> float:
        if trial.number >= len(task.trials):  # Other processes have taken the last that were enqueued.
            study.stop()
            raise optuna.TrialPruned
        keras.utils.clear_session()
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
            model = build_network(params, len(task.class_names), task.precision)
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
    study.optimize(objective, n_trials=len(task.trials), callbacks=[enough])
    client = mlflow.MlflowClient()
    # The last process to end has the last word; one that came too late for a trial may end before any is complete.
    if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        client.log_metric(parent, "best_val_accuracy", study.best_value)
    client.set_terminated(parent)


def begin(task: Task, experiment: str) -> tuple[optuna.Study, str]:
    """Open the study and name its parent run; the first process that comes here makes both and enqueues the trials."""
    storage = f"sqlite:///{task.folder / 'optuna.db'}"
    with FileLock(task.folder / "optuna.lock"):
        study = optuna.create_study(storage=storage, study_name="peer", direction="maximize", load_if_exists=True)
        if "parent" not in study.user_attrs:
            for params in task.trials:
                study.enqueue_trial(params)
            parent = mlflow.MlflowClient().create_run(experiment, run_name="study")
            study.set_user_attr("parent", parent.info.run_id)
    return study, study.user_attrs["parent"]


if __name__ == "__main__":
    main(read_task(sys.argv))
