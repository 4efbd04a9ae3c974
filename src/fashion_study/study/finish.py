"""What a study ends with: its best trials trained again, its figures, and the challenger in the registry."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fashion_study.statistics import CONFIDENCE, wilson_interval
from fashion_study.study.finalists import (
    DEFAULT_FINALISTS,
    DEFAULT_REPEATS,
    Budget,
    Finalist,
    FinalistPlan,
    Repeats,
    choose,
    plan_finalists,
)
from fashion_study.study.leaderboard import rank, table
from fashion_study.study.reconcile import fail_pending_models
from fashion_study.study.session import OwnedStudy, Session
from fashion_study.trial import ParamValue

if TYPE_CHECKING:
    from fashion_study.tracking.registry import Version


@dataclass(frozen=True)
class Final:
    """The finalists after a run of the study; `left` counts the repeats that are still to be trained."""

    plan: FinalistPlan
    finalists: tuple[Finalist, ...]
    left: int


def is_published(study: OwnedStudy) -> bool:
    """Return whether a study shows all that is asked for again, so that nothing is left to do."""
    return bool(study.trial_storage.attrs.get("published") == _publication(study))


def train_finalists(session: Session) -> Final:
    """Train the best trials again, as far as the budget goes."""
    study, config = session.study, session.study.plan.config
    records = rank(study.trial_storage.records())
    plan = FinalistPlan((), 0)
    # Of a study whose trials are done also where it is to be stopped: what is left is to be known then.
    is_stopped = study.is_interrupted() and study.trial_storage.counted() < config.trials
    if not is_stopped and config.finalists != 0:
        plan = plan_finalists(
            records,
            DEFAULT_FINALISTS if config.finalists is None else config.finalists,
            DEFAULT_REPEATS if config.repeats is None else config.repeats,
            _budget(session),
            session.tracker.repeats(),
        )
    if plan.note:
        study.observer.note(f"finalists: {plan.note}")
    repeats = Repeats(plan, records, session.tracker, study.plan.space, config.seed, session.precision)
    if repeats.left:
        title = f"finalists: the best {len(plan.trials)} trained again, {plan.repeats} times each"
        study.observer.begin(title, plan.total - repeats.left, plan.total, "repeats")
    session.train(repeats)
    return Final(plan, repeats.results(), repeats.left)


def publish(session: Session, final: Final) -> None:
    """Write the leaderboard and the figures, register the challenger, and end the study's run."""
    # Imported here: Matplotlib takes a while, and a study begins without it.
    from fashion_study.study.figures import study_figures

    study, trial_storage, tracker = session.study, session.study.trial_storage, session.tracker
    tracker.log_leaderboard(table(rank(trial_storage.records())))
    for name, figure in study_figures(trial_storage):
        tracker.log_figure(figure, name)
    tags = {"trials_counted": str(trial_storage.counted())}
    if study.waits.count:
        tags["server_waits"] = str(study.waits.count)
    if (best := trial_storage.best()) is not None and best.run_id is not None:
        tags |= {"best_trial": str(best.number), "best_run": best.run_id}
    if not study.is_interrupted():
        tags |= _conclude(session, final)
    # No worker is left that could finalize a model.
    for line in fail_pending_models(tracker):
        study.observer.note(line)
    finished = not study.is_interrupted() or (trial_storage.counted() >= study.plan.config.trials and not final.left)
    tracker.close_study("FINISHED" if finished else "KILLED", tags)
    trial_storage.set_attrs(repeats_left=final.left)
    in_time = session.deadline is None or time.monotonic() < session.deadline
    if in_time and not study.is_interrupted():
        trial_storage.set_attrs(published=_publication(study))


def _budget(session: Session) -> Budget:
    config, records = session.study.plan.config, session.study.trial_storage.records()
    trained = session.study.trial_storage.epochs_trained()
    is_default = config.finalists is None and config.repeats is None
    epochs = float(trained) if is_default else float("inf")
    if session.deadline is None:
        return Budget(epochs)
    seconds = sum(record.seconds or 0.0 for record in records) / max(trained, 1)
    left = max(0.0, session.deadline - time.monotonic())
    return Budget(epochs, epochs_in_time=left * max(1, session.executor.slots) / max(seconds, 1e-9))


def _conclude(session: Session, final: Final) -> dict[str, str]:
    """Log the finalists and register the challenger, where the study does; return what the study's run says of it."""
    trial_storage, finalists = session.study.trial_storage, final.finalists
    version = register_challenger(session, finalists) if session.study.registers else None
    winner = choose(finalists)
    if finalists:
        session.tracker.log_finalists(
            {
                "planned": [len(final.plan.trials), final.plan.repeats],
                "note": final.plan.note,
                "winner": winner.trial if winner else None,
                "version_run": version.run_id if version else None,
                "finalists": [finalist.as_dict() for finalist in finalists],
            }
        )
    named = (version.name, version.number) if version else None
    trial_storage.set_attrs(finalists=[finalist.as_dict() for finalist in finalists], version=named)
    return {"challenger": str(version)} if version else {}


def register_challenger(session: Session, finalists: Sequence[Finalist]) -> "Version | None":
    """Register the model of the finalist that wins, and let the alias `challenger` point to it.

    Without finalists it is the best trial's own model, whose single score is above what it is worth: it was
    chosen for it. None where no trial is complete. What is registered already is not registered twice.

    Raises:
        DamagedModelError: the model's logging was cut off.
    """
    from fashion_study.tracking.registry import CHALLENGER, Registry

    plan, best, winner = session.study.plan, session.study.trial_storage.best(), choose(finalists)
    if winner is not None and winner.median_run is not None and winner.mean is not None:
        trial, run_id, objective, interval = winner.trial, winner.median_run, winner.mean, winner.interval
        kind = f"Student t over {len(winner.objectives)} repeats"
    elif best is not None and best.run_id is not None and best.objective is not None:
        trial, run_id, objective, images = best.number, best.run_id, best.objective, session.validation_images
        interval, kind = wilson_interval(round(objective * images), images), "Wilson, one training"
    else:
        return None
    run = session.client.get_run(run_id)
    low, high = interval or (None, None)
    tags: dict[str, ParamValue | None] = {
        "study": plan.name,
        "study_run": run.data.tags["mlflow.parentRunId"],
        "trial": trial,
        "run": run_id,
        "objective": objective,
        "objective_low": low,
        "objective_high": high,
        "interval": f"{CONFIDENCE:.0%}, {kind}",
        "repeats": len(winner.objectives) if winner else 0,
        "dataset": plan.source.name,
        "data_digest": plan.source.digest,
        # Of what trained it, which need not be what registers it.
        "code_digest": run.data.tags.get("code_digest"),
        "git_commit": run.data.tags.get("mlflow.source.git.commit"),
        "parameter_count": int(run.data.metrics["parameter_count"]),
    }
    registry = Registry(session.client)
    known = {key: value for key, value in tags.items() if value is not None}
    version = registry.register(plan.source.name, run, known)
    registry.move_alias(version.name, CHALLENGER, version.number)
    return version


def _publication(study: OwnedStudy) -> list[int | None]:
    """Return what a published study shows."""
    return [study.trial_storage.counted(), study.plan.config.finalists, study.plan.config.repeats]
