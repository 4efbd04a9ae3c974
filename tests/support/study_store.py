"""A real MLflow store with the runs of studies in it, as the tracker leaves them, without training."""

from pathlib import Path

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from tests.support.empty_store import empty_store


class Studies:
    """A store to which studies are added as the tracker leaves them, without training."""

    def __init__(self, root: Path) -> None:
        self.store = empty_store(root)
        self.client = self.store.client()
        self.experiment = self.store.experiment_id(self.client, "digits")

    def study(self, name: str, ended: int | None) -> str:
        tags = {"kind": "study", "study": name}
        run_id = str(self.client.create_run(self.experiment, start_time=1, tags=tags).info.run_id)
        if ended is not None:
            self.client.set_terminated(run_id, "FINISHED", ended)
        return run_id

    def trial(self, study_run: str, objective: float, status: str = "FINISHED") -> str:
        tags = {"kind": "trial", MLFLOW_PARENT_RUN_ID: study_run}
        run_id = str(self.client.create_run(self.experiment, tags=tags).info.run_id)
        self.client.log_metric(run_id, "objective", objective)
        self.client.log_dict(run_id, {"objective": objective}, "evidence.json")
        self.client.set_terminated(run_id, status)
        return run_id
