"""The retention of model files: those of the best trials are kept, the others deleted as the study goes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from fashion_study.store.relocation import local_path
from fashion_study.store.trials import TrialRecord, TrialStorage
from fashion_study.study.leaderboard import rank
from fashion_study.text import printable
from fashion_study.tracking.search import all_pages, find, find_run
from fashion_study.trial import BASELINE_NUMBER, TrialState

# The tag that says why a run has no model any more; everything else of the run stays.
REMOVED = "model_removed"


@dataclass(eq=False)
class ModelKeeper:
    """The deletion of all model files but those of the best `keep` complete trials (None: nothing is deleted).

    Three more are kept: registered models; the baseline trial's, which a study's first model is compared with on the
    holdout before it is promoted; and those of the finalists' repeats, since more repeats can make another one the
    median that is registered. `artifacts` is the folder of an embedded store: nothing outside is touched, whatever a
    database says. `note` is told what could not be deleted.
    """

    client: MlflowClient
    trial_storage: TrialStorage
    keep: int | None
    artifacts: Path | None
    note: Callable[[str], None]

    def __post_init__(self) -> None:
        self._settled = {BASELINE_NUMBER}

    def sweep(self) -> None:
        """Delete what is not among the best any more; what a kill has left half done is done again."""
        if self.keep is None:
            return
        complete = [record for record in rank(self.trial_storage.records()) if record.state is TrialState.COMPLETE]
        worse = [record for record in complete[self.keep :] if record.number not in self._settled]
        if worse:
            registered = {version.run_id for version in all_pages(self.client.search_model_versions, "")}
            for record in worse:
                if record.run_id is not None and record.run_id not in registered:
                    self._delete(record, record.run_id)

    def _delete(self, record: TrialRecord, run_id: str) -> None:
        self._settled.add(record.number)
        run = find_run(self.client, run_id)
        # The model of a run that a user has deleted is theirs to keep or to delete.
        if run is None or run.info.lifecycle_stage != "active" or not (uri := run.data.tags.get("model_uri")):
            return
        if (model := find(self.client.get_logged_model, uri.removeprefix("models:/"))) is None:
            return  # Deleted already.
        folder, is_own = _folder(model, self.artifacts)
        if not is_own:
            self.note(f"the model files of {record.label} stay: {printable(folder)} is not where this store keeps them")
            return
        # The tag first: a kill in between leaves files that the next sweep finds, and no model that is missing without
        # a reason.
        self.client.set_tag(run_id, REMOVED, f"not among the best {self.keep} trials (--keep-models {self.keep})")
        try:
            get_artifact_repository(folder, tracking_uri=self.client.tracking_uri).delete_artifacts()
        # MLflow raises NotImplementedError for an artifact store that cannot delete.
        except (MlflowException, NotImplementedError, OSError) as error:
            self.client.delete_tag(run_id, REMOVED)
            self.note(f"the model files of {record.label} cannot be taken away, and stay: {error}")
            return
        self.client.delete_logged_model(model.model_id)


def _folder(model: LoggedModel, artifacts: Path | None) -> tuple[str, bool]:
    """Return the address of everything that a store has of a model, and whether nothing else can be there.

    The address is from a database, which anybody may have written.
    """
    address, model_id = str(model.artifact_location), model.model_id
    if address.endswith(f"/{model_id}/artifacts"):
        address = address.removesuffix("/artifacts")
    is_own = address.rstrip("/").endswith(f"/models/{model_id}")
    if artifacts is None or not is_own:
        return address, is_own
    # MLflow takes more for a path than a `file:` address: what is not clearly inside is not touched.
    path = local_path(address)
    return address, path is not None and path.resolve().is_relative_to(artifacts.resolve())
