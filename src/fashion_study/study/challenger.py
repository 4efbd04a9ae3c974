"""The challenger: what a study that has ended puts into the model registry."""

from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

from fashion_study.statistics import CONFIDENCE, wilson_interval
from fashion_study.store.trials import TrialRecord
from fashion_study.study.finalists import Finalist, choose
from fashion_study.study.plan import Plan
from fashion_study.tracking.registry import CHALLENGER, Candidate, Registry, Version
from fashion_study.trial import ParamValue


def register_challenger(
    client: MlflowClient,
    plan: Plan,
    best: TrialRecord | None,
    finalists: Sequence[Finalist],
    validation_images: int,
) -> Version | None:
    """Register the model of the finalist that wins, and let the alias `challenger` point to it.

    Without finalists it is the best trial's own model, whose single score is above what it is worth: it was
    chosen for it. None where no trial is complete. What is registered already is not registered twice.

    Raises:
        DamagedModelError: the model's logging was cut off.
    """
    candidate = _candidate(client, plan, best, choose(finalists), validation_images)
    if candidate is None:
        return None
    registry = Registry(client)
    version = registry.register(candidate)
    registry.move_alias(version.name, CHALLENGER, version.number)
    return version


def _candidate(
    client: MlflowClient, plan: Plan, best: TrialRecord | None, winner: Finalist | None, validation_images: int
) -> Candidate | None:
    if winner is not None and winner.median_run is not None and winner.mean is not None:
        trial, run_id, objective = winner.trial, winner.median_run, winner.mean
        repeats, interval = len(winner.objectives), winner.interval
    elif best is not None and best.run_id is not None and best.objective is not None:
        trial, run_id, objective = best.number, best.run_id, best.objective
        repeats, interval = 0, wilson_interval(round(objective * validation_images), validation_images)
    else:
        return None
    run = client.get_run(run_id).data
    low, high = interval or (None, None)
    tags: dict[str, ParamValue | None] = {
        "study": plan.name,
        "study_run": run.tags["mlflow.parentRunId"],
        "trial": trial,
        "run": run_id,
        "objective": objective,
        "objective_low": low,
        "objective_high": high,
        "interval": f"{CONFIDENCE:.0%}, {f'Student t over {repeats} repeats' if repeats else 'Wilson, one training'}",
        "repeats": repeats,
        "dataset": plan.source.name,
        "data_digest": plan.source.digest,
        # Of what trained it, which need not be what registers it.
        "code_digest": run.tags.get("code_digest"),
        "git_commit": run.tags.get(MLFLOW_GIT_COMMIT),
        "parameter_count": int(run.metrics["parameter_count"]),
    }
    return Candidate(
        dataset=plan.source.name,
        run_id=run_id,
        model_uri=run.tags["model_uri"],
        sha256=run.tags["model_sha256"],
        tags={key: value for key, value in tags.items() if value is not None},
    )
