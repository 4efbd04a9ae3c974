"""What the checks of a store share."""

from dataclasses import dataclass, field
from functools import cached_property

from mlflow import MlflowClient
from mlflow.entities import Run

from fashion_study.store.store import Store
from fashion_study.tracking.search import run_tree, search_runs


@dataclass
class CheckContext:
    """An open store, and what earlier checks have learned of it.

    `notes` are for the user, and no damage. `run_trees` are the runs of studies and reproductions that this store knows
    of, each with those nested under it; `alive` are those of them that a process is working on.
    """

    store: Store
    client: MlflowClient
    notes: list[str] = field(default_factory=list)
    run_trees: set[str] = field(default_factory=set)
    alive: set[str] = field(default_factory=set)

    @cached_property
    def experiments(self) -> list[str]:
        """Return the id of every experiment of the store that is not deleted."""
        return [str(experiment.experiment_id) for experiment in self.client.search_experiments()]

    def all_runs(self) -> list[Run]:
        """Return the runs of this project, deleted ones included; on a server those of other stores as well."""
        return [run for run in search_runs(self.client, self.experiments) if "kind" in run.data.tags]

    def runs(self) -> list[Run]:
        """Return the runs that belong to this store: on a server those of the run trees that it knows of."""
        return [run for run in self.all_runs() if self.store.is_embedded or run_tree(run) in self.run_trees]

    def kill(self, run_id: str, cause: str) -> None:
        """End the run of a process that is gone."""
        self.client.set_tag(run_id, "cause", cause)
        self.client.set_terminated(run_id, "KILLED")


def run_title(run: Run) -> str:
    """Return a run's id and name, for messages."""
    return f"run {run.info.run_id} ({run.info.run_name})"
