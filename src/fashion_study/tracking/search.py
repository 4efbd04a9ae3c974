"""What MLflow is asked for: searches with all of their pages, runs, artifacts, and pending models."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.store.entities import PagedList
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from fashion_study.finding import Finding, Kind, repairing
from fashion_study.paths import check_temporary_folder

T = TypeVar("T")


def all_pages(search: Callable[..., PagedList[T]], *args: Any, **options: Any) -> list[T]:
    """Return the results of a search of MLflow's client from its first page to its last."""
    found: list[T] = []
    token = None
    while True:
        page = search(*args, page_token=token, **options)
        found += page
        if not (token := page.token):
            return found


def search_runs(client: MlflowClient, experiments: list[str], condition: str = "") -> list[Run]:
    """Return every run that meets a condition, deleted ones included."""
    return all_pages(client.search_runs, experiments, condition, ViewType.ALL)


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run, deleted or not; None where there is no such run."""
    return find(client.get_run, run_id)


def run_tree(run: Run) -> str:
    """Return the run that a run is nested under, or its own id."""
    return str(run.data.tags.get(MLFLOW_PARENT_RUN_ID, run.info.run_id))


def dataset_of(client: MlflowClient, run: Run) -> str:
    """Return the data set that a run is of: a study's run names it, else its experiment, which a user can rename."""
    parent = find_run(client, run_tree(run))
    named = parent and parent.data.params.get("dataset")
    return str(named or client.get_experiment(run.info.experiment_id).name)


def find(get: Callable[[str], T], name: str) -> T | None:
    """Return what MLflow has under an id or a name; None where it has nothing there."""
    try:
        return get(name)
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return None
        raise


def read_artifact(client: MlflowClient, run_id: str, name: str) -> str | None:
    """Return the text of an artifact; None where the run is gone, has none of that name, or none that can be read."""
    folder = name.rpartition("/")[0]
    if find_run(client, run_id) is None:
        return None
    if name not in {entry.path for entry in client.list_artifacts(run_id, folder or None)}:
        return None
    with TemporaryDirectory() as target:
        try:
            return Path(client.download_artifacts(run_id, name, target)).read_text(encoding="utf-8")
        except (MlflowException, OSError, UnicodeDecodeError):
            check_temporary_folder()
            return None


def pending_models(
    client: MlflowClient, experiments: list[str], is_abandoned: Callable[[str], bool]
) -> Iterator[Finding]:
    """Find the logged models that are not complete and never will be, by what `is_abandoned` says of their runs.

    MLflow would call them pending for ever.
    """
    # No filter of MLflow's: it compares a status, which is a number, as a string, which PostgreSQL refuses.
    for model in all_pages(client.search_logged_models, experiments):
        if model.status == LoggedModelStatus.PENDING and is_abandoned(model.source_run_id or ""):
            where = f"model {model.model_id} of run {model.source_run_id}"
            repair = repairing("it is FAILED", client.finalize_logged_model, model.model_id, "FAILED")
            what = "was interrupted while it was logged"
            yield Finding(Kind.PENDING_MODEL, where, what, "marks the model as FAILED", repair)
