"""A study in MLflow: one run for the study, one nested run for each attempt at a trial."""

import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping
from functools import cache
from getpass import getuser
from pathlib import Path
from subprocess import DEVNULL, CalledProcessError, check_output
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_SOURCE_NAME,
    MLFLOW_USER,
)

from fashion_study.text import spreadsheet_cell, without_passwords
from fashion_study.tracking.tracker import DatasetMetadata, RepeatRun, StudyMetadata
from fashion_study.trial import EpochReport, FailReason, TrialResult, TrialSpec, TrialState

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# On a study's run: the token of the trial storage that it belongs to.
LEDGER = "ledger"
RUN_STATUS = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAILED: "FAILED",
}


class MlflowTracker:
    """Write a study's runs by their ids; MLflow's own idea of an active run is never used."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._study_run_id = ""
        self._study_name = ""
        self._inputs: list[DatasetInput] = []
        self._recorded: set[str] = set()

    def open_study(
        self,
        metadata: StudyMetadata,
        data: tuple[DatasetMetadata, ...],
        run_id: str | None,
        trial_storage: str | None = None,
    ) -> str:
        """Open the study's run, the one named where it exists already, and return its id.

        A new one carries the token of its Optuna study, so that a run that a kill kept from being named there is found.
        """
        self._study_name = metadata.name
        self._inputs = [_dataset_input(entry) for entry in data]
        if run_id is None:
            tags = (
                {"kind": "study", "study": metadata.name}
                | provenance()
                | ({} if trial_storage is None else {LEDGER: trial_storage})
            )
            run_id = self._create_run(metadata.name, tags, metadata.attrs)
            self._client.log_inputs(run_id, self._inputs)
            self._client.log_text(run_id, metadata.space_yaml, "space.yaml")
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._study_run_id = run_id
        self._log_tags(run_id, {key: str(value) for key, value in metadata.settings.items()})
        started = {"started": time.strftime("%Y-%m-%d %H:%M:%S%z"), **metadata.settings}
        self._client.log_table(run_id, {k: [str(v)] for k, v in started.items()}, "invocations.json")
        return run_id

    def open_trial(
        self, number: int, attempt: int, params: Mapping[str, object], tags: Mapping[str, str], repeat: int = 0
    ) -> str:
        """Open a run for an attempt at a trial or at a finalist's repeat, nested under the study's; return its id."""
        own = {
            MLFLOW_PARENT_RUN_ID: self._study_run_id,
            "kind": "finalist" if repeat else "trial",
            "study": self._study_name,
            "trial": str(number),
            "attempt": str(attempt),
            "state": TrialState.RUNNING.value,
        }
        if repeat:
            own["repeat"] = str(repeat)
        run_id = self._create_run(_name(number, repeat), own | provenance() | dict(tags), params)
        self._client.log_inputs(run_id, self._inputs)
        return run_id

    def log_epoch(self, run_id: str, report: EpochReport) -> None:
        """Add one epoch to the curves of a run."""
        values = {
            "train_loss": report.train_loss,
            "train_accuracy": report.train_accuracy,
            "val_loss": report.val_loss,
            "val_accuracy": report.val_accuracy,
            "epoch_seconds": report.seconds,
            "images_per_second": report.images_per_second,
        }
        self._log_metrics(run_id, values, step=report.epoch)

    def record_result(self, spec: TrialSpec, result: TrialResult) -> None:
        """Log the final metrics and how the attempt ended, at once: enough to take a result over after a kill."""
        tags = {"state": result.state.value, "epochs_run": str(result.epochs_run)} | result.tags
        if result.reason is not None:
            tags["reason"] = result.reason.value
        if result.message:
            self._client.log_text(spec.run_id, without_passwords(result.message), "failure.txt")
        # MLflow writes the tags after the metrics: a run whose tags say that it ended has everything.
        self._client.log_batch(spec.run_id, _metrics(result.metrics, result.epochs_run), tags=_tags(tags))
        self._recorded.add(spec.run_id)

    def close_trial(self, spec: TrialSpec, result: TrialResult) -> None:
        """Give the run its status and its readable name, and log the result where that is not done yet."""
        if spec.run_id not in self._recorded:
            self.record_result(spec, result)
        self._recorded.discard(spec.run_id)
        self._end(spec.run_id, RUN_STATUS[result.state], run_name(result, spec.repeat))

    def interrupt_trial(self, number: int, run_id: str, cause: str, state: TrialState) -> None:
        """End the run of an attempt that was stopped from outside; `state` is where that leaves the trial."""
        given_up = state is TrialState.FAILED
        tags = {"state": state.value, "reason": FailReason.INTERRUPTED.value} if given_up else {"state": "interrupted"}
        self._log_tags(run_id, {**tags, "cause": without_passwords(cause)})
        self._end(run_id, "FAILED" if given_up else "KILLED", f"{number:03d}  interrupted")

    def supersede(self, run_id: str, by: str) -> None:
        """Say on the run of an earlier attempt which run took its place."""
        self._log_tags(run_id, {"superseded_by": by})

    def log_best(self, counted: int, objective: float) -> None:
        """Add the best objective so far to the study's run; the step is the number of trials counted."""
        self._log_metrics(self._study_run_id, {"best_objective": objective}, step=counted)

    def log_busy_share(self, counted: int, share: float) -> None:
        """Add to the study's run which share of the workers' time went into attempts."""
        self._log_metrics(self._study_run_id, {"workers_busy_share": share}, step=counted)

    def close_study(self, status: str, tags: Mapping[str, str]) -> None:
        """End the study's run."""
        self._log_tags(self._study_run_id, tags)
        self._end(self._study_run_id, status, self._study_name)

    def log_leaderboard(self, table: "pd.DataFrame") -> None:
        """Log the ranked trials, as a table for MLflow's viewer and as CSV."""
        split = table.to_json(orient="split", index=False)
        self._client.log_text(self._study_run_id, split, "leaderboard.json")
        cells = table.rename(columns=spreadsheet_cell).map(spreadsheet_cell)
        self._client.log_text(self._study_run_id, cells.to_csv(index=False), "leaderboard.csv")
        tables = [{"path": f"{name}.json", "type": "table"} for name in ("leaderboard", "invocations")]
        self._log_tags(self._study_run_id, {MLFLOW_LOGGED_ARTIFACTS: json.dumps(tables)})

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Log a figure of the whole study as `figures/NAME.png`."""
        tight = {"bbox_inches": "tight"}  # Long names of parameters would be cut off.
        self._client.log_figure(self._study_run_id, figure, f"figures/{name}.png", save_kwargs=tight)

    def repeats(self) -> list[RepeatRun]:
        """Return the runs of every finalist's repeats, the oldest first."""
        found = self._search("tags.kind = 'finalist'")
        return [_repeat_run(run) for run in sorted(found, key=lambda run: run.info.start_time)]

    def log_finalists(self, finalists: Mapping[str, Any]) -> None:
        """Log what the finalists' repeats reached, on the study's run."""
        self._client.log_dict(self._study_run_id, dict(finalists), "finalists.json")

    def _search(self, condition: str) -> list[Run]:
        # Not by the study's name: another store may have one of that name on the same server.
        condition = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self._study_run_id}' and {condition}"
        found: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment_id], condition, page_token=token)
            found += page
            if not (token := page.token):
                return found

    def _create_run(self, name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> str:
        run_id = str(self._client.create_run(self._experiment_id, tags=dict(tags), run_name=name).info.run_id)
        self._client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
        return run_id

    def _log_metrics(self, run_id: str, values: Mapping[str, float], step: int) -> None:
        self._client.log_batch(run_id, metrics=_metrics(values, step))

    def _log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._client.log_batch(run_id, tags=_tags(tags))

    def _end(self, run_id: str, status: str, name: str) -> None:
        # The name first: a run that has ended is looked at no more.
        self._client.update_run(run_id, name=name)
        self._client.set_terminated(run_id, status)


def run_name(result: TrialResult, repeat: int = 0) -> str:
    """Name a run so that a person can read it in a table: `012  0.913`, `007  pruned at 3`, `005  diverged`."""
    match result.state:
        case TrialState.COMPLETE:
            outcome = f"{result.objective:.4f}"
        case TrialState.PRUNED:
            outcome = f"pruned at {result.epochs_run}"
        case _:
            outcome = str(result.reason)
    return f"{_name(result.number, repeat)}  {outcome}"


def _name(number: int, repeat: int) -> str:
    # Short: the UI shows the first 16 letters or so.
    return f"{number:03d}" + (f" r{repeat}" if repeat else "")


def _metrics(values: Mapping[str, float], step: int) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(key, value, now, step) for key, value in values.items()]


def _tags(tags: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(key, value) for key, value in tags.items()]


def _repeat_run(run: Run) -> RepeatRun:
    tags = run.data.tags
    return RepeatRun(
        trial=int(tags["trial"]),
        repeat=int(tags["repeat"]),
        attempt=int(tags["attempt"]),
        run_id=run.info.run_id,
        status=run.info.status,
        objective=run.data.metrics.get("objective"),
    )


@cache
def code_commit() -> str | None:
    """Return the git commit of this code, with `+` where files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # Where this file is not git's, the checkout is somebody else's that this package was installed into.
        check_output([*git, "ls-files", "--error-unmatch", Path(__file__).name], stderr=DEVNULL)
        commit = check_output([*git, "rev-parse", "HEAD"], text=True, stderr=DEVNULL).strip()
        changed = check_output([*git, "status", "--porcelain"], text=True, stderr=DEVNULL).strip()
    except (OSError, CalledProcessError):
        return None
    return f"{commit}+" if changed else commit


def code_digest() -> str:
    """Return the SHA-256 of this package's Python files, which says what trained a model outside a checkout too."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):  # A container's user need not have a name.
        return str(os.getuid())


@cache
def provenance() -> dict[str, str]:
    """Say who runs which code where, as tags of a run."""
    from importlib.metadata import version

    tags = {
        MLFLOW_SOURCE_NAME: "fashion_study",
        MLFLOW_USER: _user(),
        "host": socket.gethostname(),
        "code_version": version("fashion-study"),
        "code_digest": code_digest(),
    }
    if commit := code_commit():
        tags[MLFLOW_GIT_COMMIT] = commit
    return tags


def _dataset_input(metadata: DatasetMetadata) -> DatasetInput:
    profile = json.dumps({"images": metadata.images, "height": 28, "width": 28, "pixels": "uint8, 0 to 255"})
    # MLflow's column for a digest holds 36 characters.
    source = json.dumps({"name": metadata.name})
    dataset = Dataset(metadata.name, metadata.digest[:36], source_type="local", source=source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", metadata.context)])
