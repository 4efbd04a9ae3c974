"""The runs of a study in MLflow: one for the study, and one nested run for each attempt at a trial."""

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from getpass import getuser
from importlib.metadata import version
from pathlib import Path
from subprocess import DEVNULL, CalledProcessError, check_output
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_SOURCE_NAME,
    MLFLOW_USER,
)
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from fashion_study.data.dataset import Dataset
from fashion_study.finding import Finding
from fashion_study.text import spreadsheet_cell, without_passwords
from fashion_study.tracking.attempt import ORPHAN, RUN_STATUS, Attempt, open_run_name, read_attempt, run_name
from fashion_study.tracking.search import find_run, pending_models, search_runs
from fashion_study.trial import Epoch, FailReason, TrialResult, TrialSpec, TrialState

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# On a study's run: the token of the trial storage that it belongs to.
STORAGE_TOKEN = "ledger"
EMPTY: Mapping[str, Any] = {}


@dataclass(frozen=True)
class StudyMetadata:
    """What the study's run shows of the study: what was asked for, and the space to repeat it.

    `attrs` stay the same for the life of a study and are logged as parameters; `settings` may change when it is
    resumed and are logged as tags, each start in one row of a table.
    """

    name: str
    space_yaml: str
    attrs: Mapping[str, str | int | float | None]
    settings: Mapping[str, str | int | float | None]


class StudyRuns:
    """The runs of one study: written while it runs, read and repaired after a kill.

    Runs are named by their ids; MLflow's active run is never used. `run_id` is the study's own run, empty before
    `open_study` has made it.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, run_id: str | None = None) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self.run_id = run_id or ""
        self._study_name = ""
        self._inputs: list[DatasetInput] = []
        self._recorded: set[str] = set()

    def open_study(self, metadata: StudyMetadata, data: Dataset | None, token: str | None = None) -> str:
        """Open the study's run, make it where there is none, and return its id.

        A new one has the token of its trial storage: a kill can come before that has the id of the run.
        """
        self._study_name = metadata.name
        self._inputs = [] if data is None else list(_inputs(data))
        tags = {"kind": "study", "study": metadata.name} | ({} if token is None else {STORAGE_TOKEN: token})
        if self.run_id:
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            self.run_id = self._create_run(metadata.name, tags, metadata.attrs)
            self._client.log_text(self.run_id, metadata.space_yaml, "space.yaml")
        # The tags of a run that was there are set again: a user may have deleted them.
        self._log(self.run_id, tags | {key: str(value) for key, value in metadata.settings.items()})
        started = {"started": time.strftime("%Y-%m-%d %H:%M:%S%z"), **metadata.settings}
        self._client.log_table(self.run_id, {k: [str(v)] for k, v in started.items()}, "invocations.json")
        return self.run_id

    def open_trial(
        self, number: int, attempt: int, params: Mapping[str, object], tags: Mapping[str, str], repeat: int = 0
    ) -> str:
        """Open a run for an attempt at a trial or at a finalist's repeat, nested under the study's; return its id."""
        own = {
            MLFLOW_PARENT_RUN_ID: self.run_id,
            "kind": "finalist" if repeat else "trial",
            "study": self._study_name,
            "trial": str(number),
            "attempt": str(attempt),
            "state": TrialState.RUNNING.value,
        }
        if repeat:
            own["repeat"] = str(repeat)
        return self._create_run(open_run_name(number, repeat), own | dict(tags), params)

    def resume_trial(self, spec: TrialSpec, epochs: Sequence[Epoch]) -> None:
        """Open the run of an earlier attempt again, and add what its curves lack of these epochs."""
        run_id = spec.run_id
        self._client.update_run(run_id, status="RUNNING", name=open_run_name(spec.number, spec.repeat))
        resumed = {"resumed_after_epoch": str(spec.resumes), "cause": ""}
        self._log(run_id, {"attempt": str(spec.attempt), "state": TrialState.RUNNING.value} | resumed)
        logged = {point.step for point in self._client.get_metric_history(run_id, "val_accuracy")}
        self.log_epochs(run_id, *(epoch for epoch in epochs if epoch.epoch not in logged))

    def log_epochs(self, run_id: str, *epochs: Epoch) -> None:
        """Add epochs to the curves of a run."""
        now = int(time.time() * 1000)
        points = [
            Metric(key, value, now, epoch.epoch)
            for epoch in epochs
            for key, value in {
                "train_loss": epoch.train_loss,
                "train_accuracy": epoch.train_accuracy,
                "val_loss": epoch.val_loss,
                "val_accuracy": epoch.val_accuracy,
                "epoch_seconds": epoch.seconds,
                "images_per_second": epoch.images_per_second,
            }.items()
        ]
        for first in range(0, len(points), MAX_METRICS_PER_BATCH):
            self._client.log_batch(run_id, points[first : first + MAX_METRICS_PER_BATCH])

    def record_result(self, spec: TrialSpec, result: TrialResult) -> None:
        """Log the final metrics and how the attempt ended, at once: enough to adopt the result after a kill."""
        tags = {"state": result.state.value, "epochs_run": str(result.epochs_run)} | result.tags
        if result.reason is not None:
            tags["reason"] = result.reason.value
        if result.message:
            tags["cause"] = result.cause
            self._client.log_text(spec.run_id, without_passwords(result.message), "failure.txt")
        # MLflow writes the tags after the metrics: a run whose tags say that it ended has everything.
        self._log(spec.run_id, tags, result.metrics, step=result.epochs_run)
        self._recorded.add(spec.run_id)

    def close_trial(self, spec: TrialSpec, result: TrialResult) -> None:
        """Give the run its status and its readable name, and log the result where that is not done yet."""
        if spec.run_id not in self._recorded:
            self.record_result(spec, result)
        self._recorded.discard(spec.run_id)
        self._end(spec.run_id, RUN_STATUS[result.state], run_name(result, spec.repeat))

    def correct(self, attempt: Attempt, state: TrialState, objective: float | None, reason: FailReason | None) -> None:
        """Give the run of an attempt the status, the tags and the name of how its trial ended."""
        metrics = {"objective": objective} if objective is not None and attempt.objective is None else {}
        tags = {"state": state.value} | ({"reason": reason.value} if reason else {})
        self._log(attempt.run_id, tags, metrics, step=attempt.epochs_run)
        result = TrialResult(attempt.trial, attempt.number, state, attempt.epochs_run, objective, reason)
        self._end(attempt.run_id, RUN_STATUS[state], run_name(result, attempt.repeat))

    def interrupt_trial(self, number: int, run_id: str, cause: str, state: TrialState, repeat: int = 0) -> None:
        """End the run of an attempt that was stopped from outside; `state` is where that leaves the trial."""
        given_up = state is TrialState.FAILED
        tags = {"state": state.value, "reason": FailReason.INTERRUPTED.value} if given_up else {"state": "interrupted"}
        self._log(run_id, {**tags, "cause": without_passwords(cause)})
        self._end(run_id, "FAILED" if given_up else "KILLED", f"{open_run_name(number, repeat)}  interrupted")

    def supersede(self, run_id: str, by: str) -> None:
        """Mark the run of an earlier attempt with the run that took its place; a paused one does not go on."""
        self._log(run_id, {"superseded_by": by})
        run = find_run(self._client, run_id)
        if run is not None and run.info.status == RUN_STATUS[TrialState.PAUSED]:
            self._client.set_terminated(run_id, "KILLED")

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self._log(run_id, tags)

    def mark_orphan(self, attempt: Attempt) -> None:
        """Mark a run that no trial refers to, and end it where it is open."""
        self._log(attempt.run_id, {ORPHAN: "true"})
        if attempt.status == "RUNNING":
            self.interrupt_trial(attempt.trial, attempt.run_id, "no trial names this run", TrialState.WAITING)

    def discard(self, run_id: str, cause: str) -> None:
        """End a run that was opened for the study as a whole and is not its run, and mark it as an orphan."""
        self._log(run_id, {ORPHAN: "true", "cause": cause})
        self._client.set_terminated(run_id, "KILLED")

    def restore(self, run_id: str) -> None:
        """Restore a run that was deleted in MLflow."""
        self._client.restore_run(run_id)

    def log_best(self, counted: int, objective: float) -> None:
        """Add the best objective so far to the study's run; the step is the number of trials counted."""
        self._log(self.run_id, metrics={"best_objective": objective}, step=counted)

    def log_busy_share(self, counted: int, share: float) -> None:
        """Add to the study's run which share of the workers' time went into attempts."""
        self._log(self.run_id, metrics={"workers_busy_share": share}, step=counted)

    def log_leaderboard(self, table: "pd.DataFrame") -> None:
        """Log the ranked trials, as a table for MLflow's viewer and as CSV."""
        split = table.to_json(orient="split", index=False)
        self._client.log_text(self.run_id, split, "leaderboard.json")
        cells = table.rename(columns=spreadsheet_cell).map(spreadsheet_cell)
        self._client.log_text(self.run_id, cells.to_csv(index=False), "leaderboard.csv")
        tables = [{"path": f"{name}.json", "type": "table"} for name in ("leaderboard", "invocations")]
        self._log(self.run_id, {MLFLOW_LOGGED_ARTIFACTS: json.dumps(tables)})

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Log a figure of the whole study as `figures/NAME.png`."""
        tight = {"bbox_inches": "tight"}  # Long names of parameters would be cut off.
        self._client.log_figure(self.run_id, figure, f"figures/{name}.png", save_kwargs=tight)

    def log_finalists(self, finalists: Mapping[str, Any]) -> None:
        """Log what the finalists' repeats reached, on the study's run."""
        self._client.log_dict(self.run_id, dict(finalists), "finalists.json")

    def close_study(self, status: str, tags: Mapping[str, str]) -> None:
        """End the study's run."""
        self._log(self.run_id, tags)
        self._end(self.run_id, status, self._study_name)

    def attempts(self) -> list[Attempt]:
        """Return the runs of every attempt, deleted ones included, the oldest first."""
        return self._attempts("")

    def repeats(self) -> list[Attempt]:
        """Return the runs of every attempt at a finalist's repeat that is not deleted, the oldest first."""
        return [attempt for attempt in self._attempts(" and tags.kind = 'finalist'") if not attempt.is_deleted]

    def unsettled(self, trials: Iterable[int]) -> list[Attempt]:
        """Return the runs that are open, those of the finalists' repeats, and every run of `trials`, the oldest first.

        MLflow takes a millisecond or two to read a run, and more the more there is in it.
        """
        of_trials = (f" and tags.trial = '{number}'" for number in trials)
        return self._attempts(" and attributes.status = 'RUNNING'", " and tags.kind = 'finalist'", *of_trials)

    def find(self, run_id: str) -> Attempt | None:
        """Return one run, deleted or not; None where there is no such run."""
        run = find_run(self._client, run_id)
        return None if run is None else read_attempt(run)

    def unlinked(self, token: str | None) -> list[str]:
        """Return the runs that were opened for the study as a whole, are not its run, and are not marked as orphans.

        They have the `token` of its trial storage; None: the study is older than those tokens.
        """
        if token is None:
            return []
        found = search_runs(self._client, [self._experiment_id], f"tags.{STORAGE_TOKEN} = '{token}'")
        others = (run for run in found if run.info.run_id != self.run_id and run.info.lifecycle_stage == "active")
        return [run.info.run_id for run in others if ORPHAN not in run.data.tags or run.info.status == "RUNNING"]

    def pending_models(self) -> Iterator[Finding]:
        """Find the models of its attempts whose logging was cut off, while no worker has any of them in hand."""

        def is_ours(run_id: str) -> bool:
            run = find_run(self._client, run_id) if run_id else None
            return run is not None and run.data.tags.get(MLFLOW_PARENT_RUN_ID) == self.run_id

        return pending_models(self._client, [self._experiment_id], is_ours)

    def best_objective(self) -> float | None:
        """Return the best objective that the study's run shows."""
        run = find_run(self._client, self.run_id)
        return None if run is None else run.data.metrics.get("best_objective")

    def _attempts(self, *conditions: str) -> list[Attempt]:
        """Return the attempts of the study that meet one of the conditions."""
        # Not by the study's name: another store may have one of that name on the same server.
        below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'"
        found = {
            run.info.run_id: read_attempt(run)
            for condition in conditions
            for run in search_runs(self._client, [self._experiment_id], below + condition)
            if run.data.tags.get("kind") in ("trial", "finalist")
        }
        return sorted(found.values(), key=lambda attempt: attempt.started)

    def _create_run(self, name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> str:
        made = self._client.create_run(self._experiment_id, tags={**provenance(), **tags}, run_name=name)
        run_id = str(made.info.run_id)
        self._client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
        self._client.log_inputs(run_id, self._inputs)
        return run_id

    def _log(
        self, run_id: str, tags: Mapping[str, str] = EMPTY, metrics: Mapping[str, float] = EMPTY, step: int = 0
    ) -> None:
        now = int(time.time() * 1000)
        points = [Metric(key, value, now, step) for key, value in metrics.items()]
        self._client.log_batch(run_id, points, tags=[RunTag(key, value) for key, value in tags.items()])

    def _end(self, run_id: str, status: str, name: str) -> None:
        # Past the client, whose methods take three requests for it and read the whole run before.
        ended = None if status == RUN_STATUS[TrialState.PAUSED] else int(time.time() * 1000)
        self._client._tracking_client.store.update_run_info(run_id, RunStatus.from_string(status), ended, name)


@cache
def provenance() -> dict[str, str]:
    """Return the user, the machine and the code of this process, as tags of a run."""
    try:
        user = getuser()
    except (KeyError, OSError):  # A container's user need not have a name.
        user = str(os.getuid())
    tags = {
        MLFLOW_SOURCE_NAME: "fashion_study",
        MLFLOW_USER: user,
        "host": socket.gethostname(),
        "code_version": version("fashion-study"),
        "code_digest": code_digest(),
    }
    if commit := code_commit():
        tags[MLFLOW_GIT_COMMIT] = commit
    return tags


@cache
def code_commit() -> str | None:
    """Return the git commit of this code, with `+` where files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # Where git does not track this file, the checkout is another project's that this package was installed into.
        check_output([*git, "ls-files", "--error-unmatch", Path(__file__).name], stderr=DEVNULL)
        commit = check_output([*git, "rev-parse", "HEAD"], text=True, stderr=DEVNULL).strip()
        changed = check_output([*git, "status", "--porcelain"], text=True, stderr=DEVNULL).strip()
    except (OSError, CalledProcessError):
        return None
    return f"{commit}+" if changed else commit


def code_digest() -> str:
    """Return the SHA-256 of this package's Python files, which identifies the code outside a checkout too."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _inputs(data: Dataset) -> Iterator[DatasetInput]:
    """Describe the two parts of a data set that every trial reads."""
    height, width, channels = data.image_shape
    size = {"height": height, "width": width} | ({"channels": channels} if channels > 1 else {})
    for context, split in (("training", data.train), ("validation", data.validation)):
        # MLflow tells data sets apart by name and digest, so each part has a name of its own.
        name = f"{data.name}-{context}"
        profile = json.dumps({"images": len(split.labels), **size, "pixels": "uint8, 0 to 255"})
        source = json.dumps({"name": name})
        # MLflow's column for a digest holds 36 characters.
        part = MlflowDataset(name, data.split_digest[:36], "local", source, profile=profile)
        yield DatasetInput(part, [InputTag("mlflow.data.context", context)])
