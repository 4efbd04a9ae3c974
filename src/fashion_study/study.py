"""Run a study from a config to its last figure: the table of contents of the main job."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from signal import Signals
from typing import TYPE_CHECKING, cast

from fashion_study.config import KerasTunerSampler, SamplerName, StudyConfig
from fashion_study.coordinator import Assignment, Coordinator
from fashion_study.datasets import load_study_data
from fashion_study.engines.engine import Engine
from fashion_study.engines.ledger import TRACKED_AT, Ledger, TrialRecord
from fashion_study.engines.optuna_engine import BASELINE_NUMBER, OptunaEngine
from fashion_study.errors import StoreError, StudyError
from fashion_study.executors.executor import Executor
from fashion_study.finalists import (
    DEFAULT_FINALISTS,
    DEFAULT_REPEATS,
    Budget,
    Finalist,
    FinalistPlan,
    Repeats,
    choose,
    plan_finalists,
)
from fashion_study.identity import refuse_difference
from fashion_study.interrupts import Interrupts
from fashion_study.leaderboard import rank, table
from fashion_study.plan import Plan, data_cards, plan_study
from fashion_study.progress import Observer, Silent
from fashion_study.reconcile import give_up_half_written, reconcile
from fashion_study.study_figures import study_figures
from fashion_study.tracking.addresses import moves, rebase
from fashion_study.tracking.failures import store_failures
from fashion_study.tracking.store import Store, open_store
from fashion_study.tracking.study_owner import sole_coordinator
from fashion_study.tracking.waits import Waits, watch_waits
from fashion_study.trial import DataSource, Precision, TimeSpent, TrialState
from fashion_study.workforce import workforce

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from fashion_study.model_keeping import ModelKeeper
    from fashion_study.tracking.runs import MlflowTracker

FALLBACK = (
    "Fashion-MNIST is neither on disk nor can it be downloaded: FALLING BACK to scikit-learn's digits. "
    "These results say nothing about Fashion-MNIST. Name its folder with --data-dir or FASHION_MNIST_DIR."
)
GOES_ON = "Every result that was shown is kept. Free space, or see to the store; the same command goes on."


@dataclass(frozen=True)
class StudyResult:
    """Show where a study stands after a run of it. `records` and `finalists` are ranked, the best first.

    `version` is the challenger in the registry, by the model's name and the number of its version; `repeats_left`
    counts the finalists' repeats that a stop has left untrained. `spent` is what the workers' time went into.
    """

    name: str
    source: DataSource
    store: Store
    run_id: str
    experiment_id: str
    precision: Precision
    records: tuple[TrialRecord, ...]
    config: StudyConfig
    began_with: int
    seconds: float
    exhausted: str | None = None
    stopped_by: Signals | None = None
    finalists: tuple[Finalist, ...] = ()
    version: tuple[str, int] | None = None
    repeats_left: int = 0
    spent: TimeSpent = field(default_factory=TimeSpent)

    @property
    def counted(self) -> int:
        """Count the trials that the budget counts."""
        done = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED)
        return sum(record.state in done for record in self.records)

    @property
    def best(self) -> TrialRecord | None:
        """Return the complete trial with the highest objective."""
        return next((record for record in self.records if record.objective is not None), None)

    @property
    def baseline(self) -> TrialRecord | None:
        """Return the baseline trial where it is complete."""
        return next((r for r in self.records if r.number == BASELINE_NUMBER and r.objective is not None), None)


@dataclass(frozen=True)
class _Session:
    """Hold a study that is open: its stores, its workers, and until when it may start something."""

    plan: Plan
    store: Store
    ledger: Ledger
    client: "MlflowClient"
    tracker: "MlflowTracker"
    executor: Executor
    observer: Observer
    interrupts: Interrupts
    waits: Waits
    require_ownership: Callable[[], None]
    precision: Precision
    validation_images: int
    deadline: float | None

    def is_interrupted(self) -> bool:
        """Say whether the user wants the study to end.

        Raises:
            StoreError: another coordinator may own the study by now; whoever asks begins nothing more.
        """
        self.require_ownership()
        return self.interrupts.received is not None


@dataclass(frozen=True)
class _Search:
    """Hold what became of the trials: why nothing more could be proposed, and what the workers' time went into."""

    exhausted: str | None = None
    spent: TimeSpent = field(default_factory=TimeSpent)


@dataclass(frozen=True)
class _Final:
    """Hold what became of the finalists; `left` counts the repeats that are still to be trained."""

    plan: FinalistPlan
    finalists: tuple[Finalist, ...]
    left: int
    spent: TimeSpent


def run_study(config: StudyConfig, observer: Observer | None = None) -> StudyResult:
    """Run the study that `config` describes, or continue it to its total, and return where it stands.

    Every trial is a run in MLflow, nested under the study's run; the ledger of trials is an Optuna study. In the
    end the best trials are trained again, and the model of the one that wins becomes the challenger in the registry.
    Ctrl-C or SIGTERM once ends cleanly: unfinished trials go back to waiting. A second one ends at once.

    Raises:
        BadInputError: the config does not fit, or the stored study is another one.
        DataError: the images are missing or damaged.
        StoreError: the store cannot be used or gives up, or another process runs this study.
    """
    observer = observer or Silent()
    plan = plan_study(config)
    if plan.source.is_fallback:
        observer.warn(FALLBACK)
    store = open_store(config.store, study_db=config.study_db)
    started = time.monotonic()
    with (
        store_failures(store, GOES_ON),
        store.ledger_storage() as storage,
        sole_coordinator(store, storage, plan.name) as require_ownership,
        Interrupts(observer.note) as interrupts,
        watch_waits(observer.warn) as waits,
    ):
        ledger = Ledger(storage, plan.name)
        _refuse_another_study(plan, ledger)
        began_with = ledger.counted()
        search = _Search()
        if began_with < config.trials or not _is_published(plan, ledger):
            search = _run(plan, store, ledger, observer, interrupts, waits, require_ownership)
        elif config.keep_models is not None:
            _model_keeper(store, store.client(), ledger, config, observer).sweep()
        facts = ledger.facts
        return StudyResult(
            name=plan.name,
            source=plan.source,
            store=store,
            run_id=facts["run_id"],
            experiment_id=facts["experiment_id"],
            precision=Precision(facts["precision"]),
            records=rank(ledger.records()),
            config=config,
            began_with=began_with,
            seconds=time.monotonic() - started,
            exhausted=search.exhausted,
            spent=search.spent,
            stopped_by=interrupts.received,
            finalists=tuple(Finalist.from_dict(entry) for entry in facts.get("finalists") or ()),
            repeats_left=int(facts.get("repeats_left") or 0),
            version=(facts["version"][0], facts["version"][1]) if facts.get("version") else None,
        )


def _refuse_another_study(plan: Plan, ledger: Ledger) -> None:
    config = plan.config
    identity = plan.identity
    stored = dict(ledger.facts.get("identity", identity))
    if config.precision != "auto" and "precision" in ledger.facts:
        stored["precision"], identity["precision"] = ledger.facts["precision"], config.precision
    refuse_difference(plan.name, stored, identity)


def _is_published(plan: Plan, ledger: Ledger) -> bool:
    return bool(ledger.facts.get("published") == _publication(plan, ledger))


def _publication(plan: Plan, ledger: Ledger) -> list[int | None]:
    """Name what a published study shows: when it is asked for the same again, nothing is left to do."""
    return [ledger.counted(), plan.config.finalists, plan.config.repeats]


def _run(
    plan: Plan,
    store: Store,
    ledger: Ledger,
    observer: Observer,
    interrupts: Interrupts,
    waits: Waits,
    require_ownership: Callable[[], None],
) -> _Search:
    """Train what is left of the budget and publish the study; the time spent is that of the finalists, too."""
    with workforce(plan, store, observer) as executor:
        session = _open(plan, store, ledger, executor, observer, interrupts, waits, require_ownership)
        with _closing_its_run(session):
            search = _search(session)
            final = _train_finalists(session)
    search = replace(search, spent=search.spent + final.spent)
    observer.note("writing the study's figures")
    session.tracker.log_time_spent(ledger.counted(), search.spent)
    _publish(session, final)
    return search


def _open(
    plan: Plan,
    store: Store,
    ledger: Ledger,
    executor: Executor,
    observer: Observer,
    interrupts: Interrupts,
    waits: Waits,
    require_ownership: Callable[[], None],
) -> _Session:
    """Open the stores and bring them together, while the workers import TensorFlow."""
    from fashion_study.tracking.attempts import StudyRuns, find_run
    from fashion_study.tracking.runs import MlflowTracker

    config = plan.config
    data = load_study_data(plan.source, config.limit_train)
    split = ledger.facts.get("split", data.split_digest)
    refuse_difference(plan.name, {"split": split}, {"split": data.split_digest})
    # Not before the data are there: a limit that they cannot meet must leave no study behind.
    ledger.remember(identity=plan.identity, split=split)
    client = store.client()
    for move in moves(store):
        if (backup := rebase(store, move)) is not None:
            observer.warn(
                f"the store was moved from {move.old}: its addresses point here now; a copy from before is {backup}"
            )
    experiment_id = store.experiment_id(client, plan.source.name)
    tracker = MlflowTracker(client, experiment_id)
    precision = _precision(config, ledger, executor, observer)
    known = ledger.facts.get("run_id")
    run = find_run(client, known) if known else None
    if known and run is None:
        _refuse_another_place(plan.name, ledger, store)
    if run is not None and run.info.lifecycle_stage != "active":
        client.restore_run(run.info.run_id)
    run_id = tracker.open_study(plan.card(precision), data_cards(data), known, ledger.token)
    # Unpublished until the end, so that the next start takes up what a kill leaves, whatever its total.
    ledger.remember(run_id=run_id, experiment_id=experiment_id, published=None)
    if store.database is not None:
        ledger.remember(**{TRACKED_AT: store.tracked_at})
    for line in reconcile(ledger, StudyRuns(client, experiment_id, run_id)):
        observer.note(line)
    deadline = None if config.timeout is None else time.monotonic() + config.timeout
    images = len(data.validation.labels)
    return _Session(
        plan,
        store,
        ledger,
        client,
        tracker,
        executor,
        observer,
        interrupts,
        waits,
        require_ownership,
        precision,
        images,
        deadline,
    )


def _refuse_another_place(name: str, ledger: Ledger, store: Store) -> None:
    """Refuse to go on without a study's runs, where the ledger on a server says that they are kept elsewhere."""
    if (place := ledger.facts.get(TRACKED_AT)) not in (None, store.tracked_at):
        raise StoreError(
            f"Study {name!r} keeps its runs at {place}, and its own run is not at {store.tracked_at}. "
            "Expected the same place for all of them. Set MLFLOW_TRACKING_URI, or name the folder with --store."
        )


@contextmanager
def _closing_its_run(session: _Session) -> Iterator[None]:
    """Let no study look alive that has ended with an error; where it is the store's, the next start sees to that."""
    try:
        yield
    except StoreError:
        raise
    except StudyError:
        session.tracker.close_study("FAILED", {})
        raise


def _precision(config: StudyConfig, ledger: Ledger, executor: Executor, observer: Observer) -> Precision:
    """Take the study's precision: the stored one, the one asked for, or the faster one on this machine."""
    if "precision" not in ledger.facts:
        if config.precision != "auto":
            ledger.remember(precision=config.precision)
        else:
            probe = executor.probe_precision()
            ledger.remember(precision=probe.precision.value, precision_probe=probe.images_per_second)
            rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in probe.images_per_second.items())
            observer.note(f"precision {probe.precision}: the faster one here (images/s: {rates})")
    return Precision(ledger.facts["precision"])


def _search(session: _Session) -> _Search:
    """Run trials to the end of the budget."""
    plan, config, ledger = session.plan, session.plan.config, session.ledger
    keeper = _model_keeper(session.store, session.client, ledger, config, session.observer)
    keeper.sweep()
    session.observer.begin(plan.title(session.precision), ledger.counted(), config.trials)
    coordinator = Coordinator(
        Assignment(plan.space, config.seed, session.precision, config.trials, session.deadline, config.epoch_budget),
        _engine(plan, ledger),
        ledger,
        session.executor,
        session.tracker,
        session.observer,
        session.is_interrupted,
        keeper.sweep,
    )
    coordinator.run()
    return _Search(coordinator.exhausted.reason if coordinator.exhausted else None, coordinator.spent)


def _engine(plan: Plan, ledger: Ledger) -> Engine:
    config = plan.config
    if config.engine == "optuna":
        sampler = cast(SamplerName, config.sampler)
        return OptunaEngine(ledger, plan.space, sampler, config.pruner, config.seed, plan.points)
    # Not before it is asked for: it brings TensorFlow.
    from fashion_study.engines.keras_tuner_engine import KerasTunerEngine

    return KerasTunerEngine(ledger, plan.space, cast(KerasTunerSampler, config.sampler), config.seed, plan.points)


def _model_keeper(
    store: Store, client: "MlflowClient", ledger: Ledger, config: StudyConfig, observer: Observer
) -> "ModelKeeper":
    from fashion_study.model_keeping import ModelKeeper

    artifacts = store.root / "artifacts" if store.is_embedded else None
    return ModelKeeper(client, ledger, config.keep_models, artifacts, observer.warn)


def _train_finalists(session: _Session) -> _Final:
    """Train the best trials again, as far as the budget goes."""
    config = session.plan.config
    records = rank(session.ledger.records())
    plan = FinalistPlan((), 0)
    if not session.is_interrupted() and config.finalists != 0:
        plan = plan_finalists(
            records,
            DEFAULT_FINALISTS if config.finalists is None else config.finalists,
            DEFAULT_REPEATS if config.repeats is None else config.repeats,
            _finalists_budget(session),
            session.tracker.repeats(),
        )
    if plan.note:
        session.observer.note(f"finalists: {plan.note}")
    repeats = Repeats(
        plan,
        records,
        session.plan.space,
        config.seed,
        session.precision,
        session.executor,
        session.tracker,
        session.observer,
        session.is_interrupted,
        session.deadline,
    )
    return _Final(plan, repeats.run(), repeats.left, repeats.spent)


def _finalists_budget(session: _Session) -> Budget:
    config, records = session.plan.config, session.ledger.records()
    trained = sum(len(record.curve) for record in records)
    is_default = config.finalists is None and config.repeats is None
    epochs = float(trained) if is_default else float("inf")
    if session.deadline is None:
        return Budget(epochs)
    seconds = sum(record.seconds or 0.0 for record in records) / max(trained, 1)
    left = max(0.0, session.deadline - time.monotonic())
    return Budget(epochs, epochs_in_time=left * max(1, session.executor.slots) / max(seconds, 1e-9))


def _publish(session: _Session, final: _Final) -> None:
    """Write the leaderboard and the figures, register the challenger, and end the study's run."""
    ledger, tracker = session.ledger, session.tracker
    tracker.log_leaderboard(table(rank(ledger.records())))
    for name, figure in study_figures(ledger.study):
        tracker.log_figure(figure, name)
    tags = {"trials_counted": str(ledger.counted())}
    if session.waits.count:
        tags["server_waits"] = str(session.waits.count)
    if (best := ledger.best()) is not None and best.run_id is not None:
        tags |= {"best_trial": str(best.number), "best_run": best.run_id}
    if not session.is_interrupted():
        tags |= _conclude(session, final)
    _tidy(session)
    finished = not session.is_interrupted() or (ledger.counted() >= session.plan.config.trials and not final.left)
    tracker.close_study("FINISHED" if finished else "KILLED", tags)
    ledger.remember(repeats_left=final.left)
    in_time = session.deadline is None or time.monotonic() < session.deadline
    if in_time and not session.is_interrupted():
        ledger.remember(published=_publication(session.plan, ledger))


def _tidy(session: _Session) -> None:
    """Give up what workers have left half-written that were ended or died; no worker is left."""
    from fashion_study.tracking.attempts import StudyRuns

    facts = session.ledger.facts
    for line in give_up_half_written(StudyRuns(session.client, facts["experiment_id"], facts["run_id"])):
        session.observer.note(line)


def _conclude(session: _Session, final: _Final) -> dict[str, str]:
    """Log the finalists and register the challenger; return what the study's run says of it."""
    from fashion_study.challenger import register_challenger

    ledger, finalists = session.ledger, final.finalists
    version = register_challenger(session.client, session.plan, ledger.best(), finalists, session.validation_images)
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
    ledger.remember(finalists=[finalist.as_dict() for finalist in finalists], version=named)
    return {"challenger": str(version)} if version else {}
