"""A study from its config to its last figure: the table of contents of the main job."""

import math
import time
from dataclasses import dataclass
from signal import Signals
from typing import TYPE_CHECKING, cast

from fashion_study.config import KerasTunerSampler, SamplerName, StudyConfig
from fashion_study.data.catalog import FALLBACK
from fashion_study.engines.engine import Engine
from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.errors import StoreError, StudyError
from fashion_study.signals import StopSignals
from fashion_study.statistics import CONFIDENCE, wilson_interval
from fashion_study.store.failures import store_failures
from fashion_study.store.locks import sole_coordinator
from fashion_study.store.mlflow_server import RetryNotifier
from fashion_study.store.store import Store, open_store
from fashion_study.store.trials import TrialRecord, TrialStorage
from fashion_study.study.finalists import (
    DEFAULT_FINALISTS,
    DEFAULT_REPEATS,
    Finalist,
    FinalistPlan,
    Repeats,
    choose,
    plan_finalists,
)
from fashion_study.study.leaderboard import rank, table
from fashion_study.study.plan import Plan, plan_study
from fashion_study.study.progress import Observer
from fashion_study.study.proposals import Proposals
from fashion_study.study.reconcile import fail_pending_models
from fashion_study.study.session import OwnedStudy, Session, open_executor, open_session
from fashion_study.trial import BASELINE_NUMBER, DataSource, ParamValue, Precision, TrialState

if TYPE_CHECKING:
    from fashion_study.tracking.registry import Version

GOES_ON = "Every result that was shown is kept. Free space, or see to the store; the same command goes on."


@dataclass(frozen=True)
class StudyResult:
    """The state of a study after a run of it. `records` and `finalists` are ranked, the best first.

    `version` is what the study has registered, by the model's name and the number of its version; it `is_challenger`
    where this run has registered it, while after an earlier one anybody can have changed the registry. `repeats_left`
    counts the finalists' repeats that a stop has left untrained. `busy_share` is the share of the workers' time that
    went into attempts, where any was trained. `total` is how many trials there were to be: the config's, or what its
    budget of time was planned for. A study that was stopped while its first worker was measuring the
    precisions has neither a run nor a precision yet.
    """

    name: str
    source: DataSource
    store: Store
    run_id: str | None
    experiment_id: str | None
    precision: Precision | None
    records: tuple[TrialRecord, ...]
    config: StudyConfig
    total: int
    began_with: int
    seconds: float
    exhausted: str | None = None
    stopped_by: Signals | None = None
    finalists: tuple[Finalist, ...] = ()
    version: tuple[str, int] | None = None
    is_challenger: bool = True
    repeats_left: int = 0
    busy_share: float | None = None

    @property
    def counted(self) -> int:
        """Count the trials that the budget counts."""
        return sum(record.state.is_counted for record in self.records)

    @property
    def best(self) -> TrialRecord | None:
        """Return the complete trial with the highest objective."""
        return next((record for record in self.records if record.objective is not None), None)

    @property
    def baseline(self) -> TrialRecord | None:
        """Return the baseline trial where it is complete."""
        return next((r for r in self.records if r.number == BASELINE_NUMBER and r.objective is not None), None)


def run_study(config: StudyConfig | Plan, observer: Observer | None = None, *, registers: bool = True) -> StudyResult:
    """Run the study that `config` or its plan describes, or continue it to its total, and return where it stands.

    Every trial is a trial of an Optuna study, and a run in MLflow below the study's run. In the end the best trials are
    trained again, and the model of the one that wins becomes the challenger in the registry, unless the study
    `registers` nothing. Ctrl-C or SIGTERM once ends cleanly: unfinished trials go back to waiting. A second one ends
    at once.

    Raises:
        BadInputError: the config does not fit, or the stored study is another one.
        DataError: the images are missing or damaged.
        StoreError: the store cannot be used or gives up, or another process runs this study.
    """
    observer = observer or Observer()
    plan = config if isinstance(config, Plan) else plan_study(config)
    config = plan.config
    if plan.source.is_fallback:
        observer.warn(FALLBACK)
    store = open_store(config.store, study_db=config.study_db, notify=observer.warn)
    started = time.monotonic()
    with (
        store_failures(store, GOES_ON),
        store.optuna_storage() as storage,
        sole_coordinator(store, storage, plan.name) as require_ownership,
        StopSignals(observer.note) as stop_signals,
        RetryNotifier(observer.warn) as waits,
    ):
        trial_storage = TrialStorage(storage, plan.name)
        study = OwnedStudy(plan, store, trial_storage, observer, stop_signals, waits, require_ownership, registers)
        study.refuse_another()
        began_with = trial_storage.counted()
        exhausted, busy_share = None, None
        total = config.trials
        goes_on = began_with < config.trials or trial_storage.attrs.get("published") != _publication(study)
        if goes_on:
            total, exhausted, busy_share = _run(study)
        elif config.keep_models is not None:
            study.model_keeper(store.client()).sweep()
        attrs = trial_storage.attrs
        return StudyResult(
            name=plan.name,
            source=plan.source,
            store=store,
            run_id=attrs.get("run_id"),
            experiment_id=attrs.get("experiment_id"),
            precision=Precision(attrs["precision"]) if "precision" in attrs else None,
            records=rank(trial_storage.records()),
            config=config,
            total=total,
            began_with=began_with,
            seconds=time.monotonic() - started,
            exhausted=exhausted,
            busy_share=busy_share,
            stopped_by=stop_signals.received,
            finalists=tuple(Finalist.from_dict(entry) for entry in attrs.get("finalists") or ()),
            repeats_left=int(attrs.get("repeats_left") or 0),
            version=tuple(attrs["version"]) if attrs.get("version") else None,
            is_challenger=goes_on and not stop_signals.received,
        )


def _run(study: OwnedStudy) -> tuple[int, str | None, float | None]:
    """Train what is left and publish the study.

    Return the total of trials, why none was left to propose, and how busy workers were.
    """
    with open_executor(study.plan, study.store, study.observer) as executor:
        session = open_session(study, executor)
        if session is None:
            config, counted = study.plan.config, study.trial_storage.counted()
            return (config.trials if config.budget is None else counted), None, None
        began = time.monotonic()
        try:
            exhausted = _search(session)
            repeats = train_finalists(session)
        except StoreError:
            raise  # The next start ends the study's run.
        except StudyError:
            session.tracker.close_study("FAILED", {})
            raise
        available = executor.slots * (time.monotonic() - began)
    study.observer.note("writing the study's figures")
    busy_share = None
    if session.busy_seconds and available:
        busy_share = min(1.0, session.busy_seconds / available)
        session.tracker.log_busy_share(study.trial_storage.counted(), busy_share)
    publish(session, repeats)
    return session.total, exhausted, busy_share


def _search(session: Session) -> str | None:
    """Run trials to the end of the budget; return why nothing is left to propose, None where something is."""
    study = session.study
    plan, config, trial_storage = study.plan, study.plan.config, study.trial_storage
    keeper = study.model_keeper(session.client)
    keeper.sweep()
    study.observer.begin(plan.title(session.precision), trial_storage.counted(), session.total)
    engine: Engine
    if config.engine == "optuna":
        sampler = cast(SamplerName, config.sampler)
        engine = OptunaEngine(trial_storage, plan.space, sampler, config.pruner, config.seed, plan.points)
    else:
        # Imported where needed: it brings TensorFlow.
        from fashion_study.engines.keras_tuner_engine import KerasTunerEngine

        own_sampler = cast(KerasTunerSampler, config.sampler)
        engine = KerasTunerEngine(trial_storage, plan.space, own_sampler, config.seed, plan.points)
    session.checkpoints.sweep(
        record.label for record in trial_storage.records() if record.state.is_ended and not engine.continues_trials
    )
    proposals = Proposals(
        engine, session.tracker, study.observer, session.precision, session.total, session.checkpoints
    )
    proposals.bound_checkpoints()
    more = 0
    while True:
        proposals.extend(more)
        epochs = (config.epoch_budget or math.inf) - trial_storage.epochs_trained()
        session.train(proposals, session.search_deadline, epochs, keeper.sweep)
        more = 0 if proposals.exhausted else session.trials_that_fit()
        if not more:
            break
        session.total += more  # The plan was for less than the time is enough for.
    if config.close and not study.is_interrupted() and (closed := proposals.end_paused()):
        study.observer.note(f"--close: paused trials that are pruned now: {closed}")
    return proposals.exhausted


def train_finalists(session: Session) -> Repeats:
    """Train the best trials again, as far as the budget goes; return what was and what was not trained."""
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
            session.tracker.repeats(),
            **_limits(session),
        )
    if plan.note:
        study.observer.note(f"finalists: {plan.note}")
    space, kept = study.plan.space, session.checkpoints
    repeats = Repeats(plan, records, session.tracker, study.observer, space, config.seed, session.precision, kept)
    if repeats.left:
        title = f"finalists: the best {len(plan.trials)} trained again, up to {plan.repeats} times each"
        study.observer.begin(title, repeats.total - repeats.left, repeats.total, "repeats")
    session.train(repeats, session.deadline)
    if not repeats.left:
        session.checkpoints.sweep(repeats=True)
    return repeats


def publish(session: Session, repeats: Repeats) -> None:
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
        # Where a budget of time decides, it has now decided how many there are.
        session.total = session.total if study.plan.config.budget is None else trial_storage.counted()
        tags |= {"trials": str(session.total)} | _conclude(session, repeats)
    # No worker is left that could finalize a model.
    for line in fail_pending_models(tracker):
        study.observer.note(line)
    finished = not study.is_interrupted() or (trial_storage.counted() >= session.total and not repeats.left)
    tracker.close_study("FINISHED" if finished else "KILLED", tags)
    trial_storage.set_attrs(repeats_left=repeats.left)
    if time.monotonic() < session.deadline and not study.is_interrupted():
        trial_storage.set_attrs(published=_publication(study))


def _limits(session: Session) -> dict[str, float]:
    """Return the epochs that the trials took, unless the user asks for more, and those that the time left allows."""
    config, records = session.study.plan.config, session.study.trial_storage.records()
    trained = session.study.trial_storage.epochs_trained()
    timed = [record for record in rank(records) if record.objective is not None and record.seconds][:DEFAULT_FINALISTS]
    seconds = sum(record.seconds or 0.0 for record in timed) / max(1, sum(record.reached for record in timed))
    left = max(0.0, session.deadline - time.monotonic()) * max(1, session.executor.slots)
    epochs = float(trained) if config.finalists is None and config.repeats is None else math.inf
    return {"epochs": epochs, "epochs_in_time": left / max(seconds, 1e-9)}


def _conclude(session: Session, repeats: Repeats) -> dict[str, str]:
    """Log the finalists and register the challenger, where the study does; return what the study's run says of it."""
    trial_storage, finalists = session.study.trial_storage, repeats.results()
    winner = choose(finalists)
    version = register_challenger(session, winner) if session.study.registers else None
    if finalists:
        session.tracker.log_finalists(
            {
                "planned": [len(repeats.plan.trials), repeats.plan.repeats],
                "note": repeats.plan.note,
                "winner": winner.trial if winner else None,
                "version_run": version.run_id if version else None,
                "finalists": [finalist.as_dict() for finalist in finalists],
            }
        )
    named = (version.name, version.number) if version else None
    trial_storage.set_attrs(finalists=[finalist.as_dict() for finalist in finalists], version=named)
    return {"challenger": str(version)} if version else {}


def register_challenger(session: Session, winner: Finalist | None) -> "Version | None":
    """Register the model of the finalist that wins, and let the alias `challenger` point to it.

    Without one it is the best trial's own model, whose single score is above what it is worth: it was
    chosen for it. None where no trial is complete. What is registered already is not registered twice.

    Raises:
        DamagedModelError: the model's logging was cut off.
    """
    from fashion_study.tracking.registry import CHALLENGER, Registry
    from fashion_study.tracking.search import find_run

    plan, best = session.study.plan, session.study.trial_storage.best()
    if winner is not None and winner.median_run is not None and winner.mean is not None:
        trial, run_id, objective, interval = winner.trial, winner.median_run, winner.mean, winner.interval
        kind = f"pooled Student t, {len(winner.objectives)} repeats"
    elif best is not None and best.run_id is not None and best.objective is not None:
        trial, run_id, objective, images = best.number, best.run_id, best.objective, session.validation_images
        interval, kind = wilson_interval(round(objective * images), images), "Wilson, one training"
    else:
        return None
    run = find_run(session.client, run_id)
    if run is None or not {"model_uri", "model_sha256"} <= run.data.tags.keys():
        gone = f"the run {run_id}" if run is None else f"the tag model_uri or model_sha256 of the run {run_id}"
        session.study.observer.warn(f"no challenger is registered: {gone} was deleted in MLflow for good")
        return None
    low, high = interval or (None, None)
    tags: dict[str, ParamValue | None] = {
        "study": plan.name,
        "study_run": session.tracker.run_id,
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
    """Return what a study shows once it is published: where that is asked for again, nothing is left to do."""
    config, records = study.plan.config, study.trial_storage.records()
    left_paused = config.close and any(record.state is TrialState.PAUSED for record in records)
    return [study.trial_storage.counted(), config.finalists, config.repeats, config.epoch_budget, left_paused]
