"""The runs of a study's attempts, as they are found and mended when no coordinator has them in hand."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from fashion_study.finding import Finding
from fashion_study.tracking.pending import abandoned, pending_models
from fashion_study.tracking.runs import LEDGER, RUN_STATUS, run_name
from fashion_study.trial import FailReason, TrialResult, TrialState

ORPHAN = "orphan"
# Of digits in a tag; Python refuses to read a few thousand of them, and somebody may have written those.
LONGEST_NUMBER = 10


@dataclass(frozen=True)
class Attempt:
    """Show the run of one attempt at a trial, or at a finalist's repeat (from 1; 0 is the trial itself).

    `status` is MLflow's, `state` the run's own tag; `seconds` is None for a run that has not ended.
    """

    run_id: str
    trial: int
    repeat: int
    number: int
    status: str
    state: str
    started: int
    seconds: float | None
    epochs_run: int
    objective: float | None
    reason: FailReason | None
    superseded_by: str | None
    is_orphan: bool
    is_deleted: bool

    @property
    def verdict(self) -> TrialState | None:
        """Return how the attempt ended by its own evidence, which the run holds in full; None where it did not."""
        if self.state == TrialState.COMPLETE and self.objective is not None:
            return TrialState.COMPLETE
        if self.state == TrialState.PRUNED:
            return TrialState.PRUNED
        return TrialState.FAILED if self.state == TrialState.FAILED and self.reason is not None else None

    @property
    def is_current(self) -> bool:
        """Say whether nothing has taken the run's place."""
        return self.superseded_by is None and not self.is_orphan and not self.is_deleted

    @property
    def label(self) -> str:
        """Name what was trained: `trial 007`, `trial 007 repeat 2`."""
        return f"trial {self.trial:03d}" + (f" repeat {self.repeat}" if self.repeat else "")


class StudyRuns:
    """Read and mend the runs below one study's run."""

    def __init__(self, client: MlflowClient, experiment_id: str, run_id: str) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self.run_id = run_id

    def attempts(self) -> list[Attempt]:
        """Return the runs of every attempt, deleted ones included, the oldest first."""
        return self._attempts("")

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

    def restore(self, run_id: str) -> None:
        """Take a deleted run out of MLflow's bin."""
        self._client.restore_run(run_id)

    def unnamed(self, trial_storage: str | None) -> list[str]:
        """Return the runs that were opened for the study as a whole, are not its run, and do not say so.

        They carry the token of its trial storage; None: the study is older than those tokens.
        """
        if trial_storage is None:
            return []
        found = search_runs(self._client, [self._experiment_id], f"tags.{LEDGER} = '{trial_storage}'")
        others = (run for run in found if run.info.run_id != self.run_id and run.info.lifecycle_stage == "active")
        return [run.info.run_id for run in others if ORPHAN not in run.data.tags or run.info.status == "RUNNING"]

    def discard(self, run_id: str, cause: str) -> None:
        """Say on a run that was opened for the study as a whole that it is not the study's, and end it."""
        self._log_tags(run_id, {ORPHAN: "true", "cause": cause})
        self._client.set_terminated(run_id, "KILLED")

    def interrupt(self, attempt: Attempt, state: TrialState, cause: str) -> None:
        """End the run of an attempt that nobody works on; `state` is where that leaves the trial."""
        given_up = state is TrialState.FAILED
        tags = {"state": state.value, "reason": FailReason.INTERRUPTED.value} if given_up else {"state": "interrupted"}
        self._log_tags(attempt.run_id, {**tags, "cause": cause})
        self._end(attempt.run_id, "FAILED" if given_up else "KILLED", f"{attempt.label[6:]}  interrupted")

    def end(self, attempt: Attempt, state: TrialState, objective: float | None, reason: FailReason | None) -> None:
        """Give a run the status, the tags and the name of how its trial ended."""
        if objective is not None and attempt.objective is None:
            self._log_metric(attempt.run_id, "objective", objective, attempt.epochs_run)
        self._log_tags(attempt.run_id, {"state": state.value} | ({"reason": reason.value} if reason else {}))
        result = TrialResult(attempt.trial, attempt.number, state, attempt.epochs_run, objective, reason)
        self._end(attempt.run_id, RUN_STATUS[state], run_name(result, attempt.repeat))

    def supersede(self, run_id: str, by: str) -> None:
        """Say on the run of an earlier attempt which run took its place."""
        self._log_tags(run_id, {"superseded_by": by})

    def name_trial(self, run_id: str, trial: int) -> None:
        """Say on a run which trial names it."""
        self._log_tags(run_id, {"trial": str(trial)})

    def mark_orphan(self, attempt: Attempt) -> None:
        """Say on a run that no trial names it, and end it where it is open."""
        self._log_tags(attempt.run_id, {ORPHAN: "true"})
        if attempt.status == "RUNNING":
            self.interrupt(attempt, TrialState.WAITING, "no trial names this run")

    def pending_models(self) -> list[Finding]:
        """Return the models of its attempts whose logging was cut off, while nobody works on any."""
        found = pending_models(self._client, [self._experiment_id])
        return [abandoned(self._client, model) for model in found if self._is_below(model.source_run_id)]

    def best_objective(self) -> float | None:
        """Return the best objective that the study's run shows."""
        run = find_run(self._client, self.run_id)
        return None if run is None else run.data.metrics.get("best_objective")

    def log_best(self, counted: int, objective: float) -> None:
        """Add the best objective to the study's run; the step is the number of trials counted."""
        self._log_metric(self.run_id, "best_objective", objective, counted)

    def _is_below(self, run_id: str | None) -> bool:
        run = find_run(self._client, run_id) if run_id else None
        return run is not None and run.data.tags.get(MLFLOW_PARENT_RUN_ID) == self.run_id

    def _attempts(self, *conditions: str) -> list[Attempt]:
        """Return the attempts below the study's run that fit one of the conditions."""
        below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'"
        found = {
            run.info.run_id: read_attempt(run)
            for condition in conditions
            for run in search_runs(self._client, [self._experiment_id], below + condition)
            if run.data.tags.get("kind") in ("trial", "finalist")
        }
        return sorted(found.values(), key=lambda attempt: attempt.started)

    def _log_metric(self, run_id: str, name: str, value: float, step: int) -> None:
        self._client.log_batch(run_id, metrics=[Metric(name, value, int(time.time() * 1000), step)])

    def _log_tags(self, run_id: str, tags: dict[str, str]) -> None:
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _end(self, run_id: str, status: str, name: str) -> None:
        # The status last: a run that is still open is found again.
        self._client.update_run(run_id, name=name)
        self._client.set_terminated(run_id, status)


def search_runs(client: MlflowClient, experiments: list[str], condition: str = "") -> list[Run]:
    """Return every run that fits, deleted ones included."""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(experiments, condition, ViewType.ALL, max_results=1000, page_token=token)
        found += page
        if not (token := page.token):
            return found


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run, deleted or not; None where there is no such run."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return None
        raise


def read_attempt(run: Run) -> Attempt:
    """Read what an attempt's run says of it; a tag that is missing or altered says nothing."""
    tags, info = run.data.tags, run.info
    reason = tags.get("reason")
    return Attempt(
        run_id=info.run_id,
        trial=_number(tags.get("trial")),
        repeat=_number(tags.get("repeat")),
        number=_number(tags.get("attempt")),
        status=info.status,
        state=tags.get("state", ""),
        started=info.start_time,
        seconds=None if info.end_time is None else (info.end_time - info.start_time) / 1000,
        epochs_run=_number(tags.get("epochs_run")),
        objective=run.data.metrics.get("objective"),
        reason=FailReason(reason) if reason in set(FailReason) else None,
        superseded_by=tags.get("superseded_by"),
        is_orphan=ORPHAN in tags,
        is_deleted=info.lifecycle_stage != "active",
    )


def _number(text: str | None) -> int:
    return int(text) if text is not None and len(text) <= LONGEST_NUMBER and text.isdecimal() else 0
