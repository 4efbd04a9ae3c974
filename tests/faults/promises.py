"""The promises I1 to I8 of `docs/reliability.md`, checked on what a study has left.

The stores are read with MLflow's and Optuna's own clients. What was acknowledged is known from outside the store: from
the lines that a user was shown, and from the journal.
"""

import hashlib
import re
import sqlite3
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import optuna
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run, ViewType
from mlflow.entities.model_registry import ModelVersion
from optuna.trial import FrozenTrial, TrialState

from fashion_study.study.reconcile import CAUSE
from tests.faults.launcher import Life

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
SHOWN = re.compile(r"^trial (\d+)(?: repeat (\d+))? (?:complete: ([\d.]+)|(pruned) at epoch|(failed): )", re.MULTILINE)
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
STATUSES = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}

# An attempt at a trial, or at a finalist's repeat: trial, repeat (0: the trial itself), attempt.
Key = tuple[int, int, int]


@dataclass(frozen=True)
class Found:
    """Show what a store holds of a study."""

    root: Path
    study: str
    workers: int = 1

    @cached_property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.root}/mlflow.db", f"sqlite:///{self.root}/mlflow.db")

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        kept = optuna.load_study(study_name=self.study, storage=f"sqlite:///{self.root}/optuna.db")
        return kept.get_trials(deepcopy=False)

    @cached_property
    def all_runs(self) -> list[Run]:
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return list(self.client.search_runs(experiments, run_view_type=ViewType.ALL, max_results=5000))

    @cached_property
    def runs(self) -> dict[Key, Run]:
        """Return the runs of the study's attempts but for those that no trial has had to do with."""
        own = [run for run in self.all_runs if run.data.tags.get("kind") in ("trial", "finalist")]
        named = [(_key(run), run) for run in own if "orphan" not in run.data.tags]
        assert len(dict(named)) == len(named), "two runs of one attempt"
        return dict(named)

    @cached_property
    def versions(self) -> list[ModelVersion]:
        return list(self.client.search_model_versions(""))


def databases_are_whole(root: Path) -> None:
    """Ask SQLite itself."""
    for name in ("mlflow.db", "optuna.db"):
        if (root / name).exists():
            with closing(sqlite3.connect(root / name)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], name


def no_acknowledged_result_is_lost(found: Found, lives: Iterable[Life]) -> None:
    """I1: what a user was shown, and what the trial storage had taken in, is there to the last digit."""
    trials = {trial.number: trial for trial in found.trials}
    current = {key[:2]: run for key, run in found.runs.items() if "superseded_by" not in run.data.tags}
    for life in lives:
        for entry in life.entries:
            if entry["what"] == "told":
                trial = trials[entry["trial"]]
                assert (trial.state, trial.value if trial.state is TrialState.COMPLETE else None) == (
                    STATES[entry["state"]],
                    entry["objective"],
                )
        for number, repeat, value, *states in SHOWN.findall(life.shown):
            run = current[int(number), int(repeat or 0)]
            state = STATES[next(filter(None, states), "complete")]
            assert run.info.status == STATUSES[state]
            assert not value or f"{run.data.metrics['objective']:.4f}" == value
            assert repeat or trials[int(number)].state is state


def nothing_runs_without_an_owner(found: Found) -> None:
    """I2: with every process gone, no trial and no run says that it is running."""
    assert [trial.number for trial in found.trials if trial.state is TrialState.RUNNING] == []
    assert [run.info.run_name for run in found.all_runs if run.info.status == "RUNNING"] == []


def every_trial_has_one_current_run(found: Found) -> None:
    """I3: linked both ways, and every earlier run names the one that took its place."""
    current: dict[tuple[int, int], list[str]] = defaultdict(list)
    by_id = {run.info.run_id: key for key, run in found.runs.items()}
    for (number, repeat, attempt), run in found.runs.items():
        successor = run.data.tags.get("superseded_by")
        if successor is None:
            current[number, repeat].append(run.info.run_id)
            continue
        assert by_id[successor][:2] == (number, repeat), "superseded by another trial's run"
        assert by_id[successor][2] > attempt, "superseded by an earlier attempt"
        assert run.info.status == "KILLED"
    assert {key: len(runs) for key, runs in current.items() if len(runs) != 1} == {}
    linked = {
        (trial.number, 0): [trial.user_attrs["run_id"]] for trial in found.trials if trial.user_attrs.get("run_id")
    }
    assert linked == {key: runs for key, runs in current.items() if not key[1]}
    for trial in found.trials:
        if trial.state in ENDED:
            (run_id,) = current[trial.number, 0]
            assert found.runs[by_id[run_id]].info.status == STATUSES[trial.state]


def no_half_written_model_is_registered(found: Found) -> None:
    """I4: every version has the file that was logged, whole, and every alias has its version."""
    runs = {run.info.run_id: run for run in found.all_runs}
    for version in found.versions:
        run = runs[str(version.run_id)]
        logged = found.client.get_logged_model(run.data.tags["model_uri"].removeprefix("models:/"))
        assert logged.status is LoggedModelStatus.READY
        assert version.source == logged.artifact_location
        file = Path(url2pathname(urlsplit(str(logged.artifact_location)).path), "data", "model.keras")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert digest == version.tags["model_sha256"] == run.data.tags["model_sha256"]
        assert zipfile.ZipFile(file).testzip() is None
        assert run.info.status == "FINISHED"
    sources = [version.run_id for version in found.versions]
    assert len(sources) == len(set(sources)), "registered twice"
    numbers = {(version.name, str(version.version)) for version in found.versions}
    for model in found.client.search_registered_models():
        assert {(model.name, str(number)) for number in model.aliases.values()} <= numbers


def the_study_has_its_total(found: Found, total: int) -> None:
    """I5: no trial too many or too few, each has ended or is paused, no parameters twice."""
    assert [trial.number for trial in found.trials] == list(range(total))
    unfinished = [trial for trial in found.trials if trial.state not in ENDED]
    assert all(trial.user_attrs.get("paused_at") for trial in unfinished), unfinished
    points = [tuple(sorted(trial.params.items())) for trial in found.trials]
    assert len(set(points)) == total


def a_kill_costs_the_running_attempts_at_most(found: Found, lives: Iterable[Life]) -> None:
    """I7: of what a start had begun, no more was trained again than its workers had in hand."""
    for life in lives:
        # The run of an attempt that went on from a checkpoint is that of the next attempt by now.
        begun = [key for key in map(_entry_key, life.begun()) if key in found.runs]
        lost = [key for key in begun if found.runs[key].data.tags.get("cause") == CAUSE]
        assert len(lost) <= found.workers, lost


def nothing_is_silent(found: Found, lives: Iterable[Life]) -> None:
    """I8: for every attempt that was cut off its run says why, and a line has told the user."""
    shown = "\n".join(life.shown for life in lives)
    for (number, repeat, attempt), run in found.runs.items():
        if run.data.tags["state"] != "interrupted":
            continue
        assert run.data.tags["cause"], run.info.run_name
        label = f"trial {number:03d}" + (f" repeat {repeat}" if repeat else "")
        assert re.search(rf"{label}:? (was interrupted in attempt {attempt}\b|stopped from outside)", shown), label


def check(found: Found, lives: Sequence[Life], total: int) -> None:
    """Check all of them on a study that was resumed to its end, I6 included: what the last start has answered."""
    databases_are_whole(found.root)
    assert lives[-1].exit_code == 0, lives[-1].shown
    no_acknowledged_result_is_lost(found, lives)
    nothing_runs_without_an_owner(found)
    every_trial_has_one_current_run(found)
    no_half_written_model_is_registered(found)
    the_study_has_its_total(found, total)
    a_kill_costs_the_running_attempts_at_most(found, lives)
    nothing_is_silent(found, lives)


def outcome(found: Found) -> object:
    """Say what a study came to, without what differs from one to the next: times, the ids of runs and models."""
    trials = [(trial.number, trial.params, trial.state, trial.value, _curve(trial)) for trial in found.trials]
    repeats = [
        (number, repeat, run.data.tags["seed"], run.data.metrics["objective"])
        for (number, repeat, _), run in sorted(found.runs.items())
        if repeat and run.info.status == "FINISHED"
    ]
    versions = [(version.tags["trial"], version.tags["objective"]) for version in found.versions]
    return trials, repeats, versions


def _curve(trial: FrozenTrial) -> dict[int, float]:
    last = trial.user_attrs.get("epochs_run", trial.user_attrs.get("paused_at", 0))
    return {epoch: value for epoch, value in sorted(trial.intermediate_values.items()) if epoch <= last}


def _key(run: Run) -> Key:
    tags = run.data.tags
    return int(tags["trial"]), int(tags.get("repeat", 0)), int(tags["attempt"])


def _entry_key(entry: dict[str, object]) -> Key:
    return int(str(entry["trial"])), int(str(entry["repeat"])), int(str(entry["attempt"]))
