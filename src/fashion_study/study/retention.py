"""The retention of model files: those of the best trials are kept, the others deleted as the study goes."""

from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from fashion_study.store.relocation import local_path
from fashion_study.store.trials import TrialStorage
from fashion_study.study.leaderboard import rank
from fashion_study.text import printable
from fashion_study.tracking.search import all_pages, find_run, is_missing
from fashion_study.trial import BASELINE_NUMBER, TrialState

# The tag that says why a run has no model any more; everything else of the run stays.
REMOVED = "model_removed"


class ModelKeeper:
    """The deletion of all model files but those of the best `keep` complete trials (None: nothing is deleted).

    Three more are kept: registered models; the baseline trial's, which a study's first model is compared with on the
    holdout before it is promoted; and those of the finalists' repeats, since more repeats can make another one the
    median that is registered. `artifacts` is the folder of an embedded store: nothing outside is touched, whatever a
    database says. `note` is told what could not be deleted.
    """

    def __init__(
        self,
        client: MlflowClient,
        trial_storage: TrialStorage,
        keep: int | None,
        artifacts: Path | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._trial_storage = trial_storage
        self._keep = keep
        self._artifacts = artifacts
        self._note = note
        self._settled: set[int] = set()

    def sweep(self) -> None:
        """Delete what is not among the best any more; what a kill has left half done is done again."""
        if self._keep is None:
            return
        complete = [record for record in rank(self._trial_storage.records()) if record.state is TrialState.COMPLETE]
        settled = self._settled | {BASELINE_NUMBER}
        worse = [record for record in complete[self._keep :] if record.number not in settled]
        if worse:
            registered = {version.run_id for version in all_pages(self._client.search_model_versions, "")}
            for record in worse:
                if record.run_id is not None and record.run_id not in registered:
                    self._delete(record.number, record.run_id)

    def _delete(self, number: int, run_id: str) -> None:
        self._settled.add(number)
        run = find_run(self._client, run_id)
        if run is None or run.info.lifecycle_stage != "active":
            return  # Deleted by a user, whose model it is to keep or to delete.
        model = self._logged_model(run)
        if model is None:
            return
        if not _is_own(folder := _folder(model), model.model_id, self._artifacts):
            self._note(
                f"the model files of trial {number:03d} stay: {printable(folder)} is not where this store keeps them"
            )
            return
        # The tag first: a kill in between leaves files that the next sweep finds, and no model that is missing without
        # a reason.
        self._client.set_tag(run_id, REMOVED, f"not among the best {self._keep} trials (--keep-models {self._keep})")
        try:
            get_artifact_repository(folder, tracking_uri=self._client.tracking_uri).delete_artifacts()
        # MLflow raises NotImplementedError for an artifact store that cannot delete.
        except (MlflowException, NotImplementedError, OSError) as error:
            self._client.delete_tag(run_id, REMOVED)
            self._note(f"the model files of trial {number:03d} cannot be taken away, and stay: {error}")
            return
        self._client.delete_logged_model(model.model_id)

    def _logged_model(self, run: Run) -> LoggedModel | None:
        uri = run.data.tags.get("model_uri", "")
        try:
            return self._client.get_logged_model(uri.removeprefix("models:/")) if uri else None
        except MlflowException as error:
            if not is_missing(error):
                raise
            return None  # Deleted already.


def _folder(model: LoggedModel) -> str:
    """Return the address of everything that a store has of a model."""
    location = str(model.artifact_location)
    own = f"/{model.model_id}/artifacts"
    return location.removesuffix("/artifacts") if location.endswith(own) else location


def _is_own(address: str, model_id: str, artifacts: Path | None) -> bool:
    """Return whether an address from a database, which anybody may have written, is that of one model's files only."""
    if not address.rstrip("/").endswith(f"/models/{model_id}"):
        return False
    if artifacts is None:
        return True
    # MLflow takes more for a path than a `file:` address: what is not clearly inside is not touched.
    path = local_path(address)
    return path is not None and path.resolve().is_relative_to(artifacts.resolve())
