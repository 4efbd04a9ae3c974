"""Run a study from a config to its last figure: the table of contents of the main job."""

import math
import time
from dataclasses import dataclass
from signal import Signals
from typing import cast

from fashion_study.config import KerasTunerSampler, SamplerName, StudyConfig
from fashion_study.data.catalog import FALLBACK
from fashion_study.engines.engine import Engine
from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.signals import StopSignals
from fashion_study.store.failures import store_failures
from fashion_study.store.locks import sole_coordinator
from fashion_study.store.mlflow_server import RetryNotifier
from fashion_study.store.store import Store, open_store
from fashion_study.store.trials import TrialRecord, TrialStorage
from fashion_study.study.finalists import Finalist
from fashion_study.study.finish import is_published, publish, train_finalists
from fashion_study.study.leaderboard import rank
from fashion_study.study.plan import Plan, plan_study
from fashion_study.study.progress import NullObserver, Observer
from fashion_study.study.proposals import Proposals
from fashion_study.study.session import OwnedStudy, Session, closing_its_run, open_executor, open_session
from fashion_study.trial import BASELINE_NUMBER, DataSource, Precision

GOES_ON = "Every result that was shown is kept. Free space, or see to the store; the same command goes on."


@dataclass(frozen=True)
class StudyResult:
    """The state of a study after a run of it. `records` and `finalists` are ranked, the best first.

    `version` is the challenger in the registry, by the model's name and the number of its version; `repeats_left`
    counts the finalists' repeats that a stop has left untrained. `busy_share` is the share of the workers' time
    that went into attempts, where any was trained. A study that was stopped while its first worker was measuring the
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
    began_with: int
    seconds: float
    exhausted: str | None = None
    stopped_by: Signals | None = None
    finalists: tuple[Finalist, ...] = ()
    version: tuple[str, int] | None = None
    repeats_left: int = 0
    busy_share: float | None = None

    @property
    def counted(self) -> int:
        """Count the trials that the budget counts."""
        return sum(record.state.is_ended for record in self.records)

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
    observer = observer or NullObserver()
    plan = config if isinstance(config, Plan) else plan_study(config)
    config = plan.config
    if plan.source.is_fallback:
        observer.warn(FALLBACK)
    store = open_store(config.store, study_db=config.study_db)
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
        if began_with < config.trials or not is_published(study):
            exhausted, busy_share = _run(study)
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
            began_with=began_with,
            seconds=time.monotonic() - started,
            exhausted=exhausted,
            busy_share=busy_share,
            stopped_by=stop_signals.received,
            finalists=tuple(Finalist.from_dict(entry) for entry in attrs.get("finalists") or ()),
            repeats_left=int(attrs.get("repeats_left") or 0),
            version=(attrs["version"][0], attrs["version"][1]) if attrs.get("version") else None,
        )


def _run(study: OwnedStudy) -> tuple[str | None, float | None]:
    """Train what is left and publish the study; return why no trial was left to propose, and how busy workers were."""
    with open_executor(study.plan, study.store, study.observer) as executor:
        session = open_session(study, executor)
        if session is None:
            return None, None
        with closing_its_run(session):
            began = time.monotonic()
            exhausted = _search(session)
            final = train_finalists(session)
            available = executor.slots * (time.monotonic() - began)
    study.observer.note("writing the study's figures")
    busy_share = None
    if session.busy_seconds and available:
        busy_share = min(1.0, session.busy_seconds / available)
        session.tracker.log_busy_share(study.trial_storage.counted(), busy_share)
    publish(session, final)
    return exhausted, busy_share


def _search(session: Session) -> str | None:
    """Run trials to the end of the budget; return why nothing is left to propose, None where something is."""
    study = session.study
    plan, config, trial_storage = study.plan, study.plan.config, study.trial_storage
    keeper = study.model_keeper(session.client)
    keeper.sweep()
    study.observer.begin(plan.title(session.precision), trial_storage.counted(), config.trials)
    engine = _engine(plan, trial_storage)
    proposals = Proposals(engine, session.tracker, study.observer, session.precision, config.trials)
    epochs = (config.epoch_budget or math.inf) - trial_storage.epochs_trained()
    session.train(proposals, epochs, keeper.sweep)
    return proposals.exhausted


def _engine(plan: Plan, trial_storage: TrialStorage) -> Engine:
    config = plan.config
    if config.engine == "optuna":
        sampler = cast(SamplerName, config.sampler)
        return OptunaEngine(trial_storage, plan.space, sampler, config.pruner, config.seed, plan.points)
    # Imported where needed: it brings TensorFlow.
    from fashion_study.engines.keras_tuner_engine import KerasTunerEngine

    return KerasTunerEngine(
        trial_storage, plan.space, cast(KerasTunerSampler, config.sampler), config.seed, plan.points
    )
