"""Models whose logging was cut off: MLflow would call them pending for ever."""

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus

from fashion_study.finding import Finding, Kind


def pending_models(client: MlflowClient, experiments: list[str]) -> list[LoggedModel]:
    """Return every logged model that is not whole yet, of a living process too."""
    found: list[LoggedModel] = []
    token = None
    while True:
        # No filter of MLflow's: it compares a status, which is a number, as a string, which PostgreSQL refuses.
        page = client.search_logged_models(experiments, page_token=token)
        found += (model for model in page if model.status == LoggedModelStatus.PENDING)
        if not (token := page.token):
            return found


def abandoned(client: MlflowClient, model: LoggedModel) -> Finding:
    """Say that nobody completes a model."""

    def repair() -> str:
        client.finalize_logged_model(model.model_id, "FAILED")
        return "it is FAILED"

    where = f"model {model.model_id} of run {model.source_run_id}"
    return Finding(Kind.PENDING_MODEL, where, "was cut off while it was logged", "marks the model as FAILED", repair)
