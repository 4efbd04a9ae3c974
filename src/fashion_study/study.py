"""Run a study from a config to its last figure: the table of contents of the main job."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from signal import Signals
from typing import TYPE_CHECKING

from fashion_study.config import StudyConfig
from fashion_study.coordinator import Assignment, Coordinator
from fashion_study.datasets import StudyData, check_limit, load_study_data, locate
from fashion_study.engines.ledger import Ledger, TrialRecord
from fashion_study.engines.optuna_engine import BASELINE_NUMBER, OptunaEngine
from fashion_study.executors.local import LocalExecutor, default_workers, threads_per_worker
from fashion_study.identity import Identity, identity_of, refuse_difference
from fashion_study.interrupts import Interrupts
from fashion_study.leaderboard import rank, table
from fashion_study.progress import Observer, Silent
from fashion_study.reconcile import reconcile, sole_owner
from fashion_study.space import SearchSpace
from fashion_study.study_figures import study_figures
from fashion_study.tracking.store import Store, open_store
from fashion_study.tracking.tracker import DataCard, StudyCard
from fashion_study.trial import TRAINING_VERSION, DataSource, Precision, TrialState, WorkerSettings

if TYPE_CHECKING:
    from fashion_study.tracking.runs import MlflowTracker

FALLBACK = (
    "Fashion-MNIST is neither on disk nor can it be downloaded: FALLING BACK to scikit-learn's digits. "
    "These results say nothing about Fashion-MNIST. Name its folder with --data-dir or FASHION_MNIST_DIR."
)


@dataclass(frozen=True)
class StudyResult:
    """Show where a study stands after a run of it. `records` are ranked, the best first."""

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
class _Plan:
    """Hold a config with everything in it looked up and checked."""

    config: StudyConfig
    space: SearchSpace
    points: tuple[dict[str, int | float | str], ...]
    source: DataSource
    name: str
    workers: int


def run_study(config: StudyConfig, observer: Observer | None = None) -> StudyResult:
    """Run the study that `config` describes, or continue it to its total, and return where it stands.

    Every trial is a run in MLflow, nested under the study's run; the ledger of trials is an Optuna study.
    Ctrl-C or SIGTERM once ends cleanly: unfinished trials go back to waiting. A second one ends at once.

    Raises:
        BadInputError: the config does not fit, or the stored study is another one.
        DataError: the images are missing or damaged.
        StoreError: the store cannot be used, or another process runs this study.
    """
    observer = observer or Silent()
    plan = _plan(config)
    if plan.source.is_fallback:
        observer.note(FALLBACK)
    store = open_store(config.store)
    started = time.monotonic()
    with sole_owner(store.root, plan.name), Interrupts(observer.note) as interrupts:
        ledger = Ledger(store.optuna_storage(), plan.name)
        _refuse_another_study(plan, ledger)
        began_with = ledger.counted()
        exhausted = None
        if began_with < config.trials or ledger.facts.get("published") != began_with:
            exhausted = _run_trials(plan, store, ledger, observer, interrupts)
        return StudyResult(
            name=plan.name,
            source=plan.source,
            store=store,
            run_id=ledger.facts["run_id"],
            experiment_id=ledger.facts["experiment_id"],
            precision=Precision(ledger.facts["precision"]),
            records=rank(ledger.records()),
            config=config,
            began_with=began_with,
            seconds=time.monotonic() - started,
            exhausted=exhausted,
            stopped_by=interrupts.received,
        )


def _plan(config: StudyConfig) -> _Plan:
    space = config.check()
    points = tuple(space.complete(point) for point in config.try_points)
    source = locate(config.dataset, config.data_dir)
    check_limit(source, config.limit_train)
    name = config.study or f"{source.name}-{space.name}"
    if config.study and source.is_fallback:
        # A name of the user's own was meant for other data; the two never share a study.
        name = f"{name}-{source.name}"
    return _Plan(config, space, points, source, name, config.workers or default_workers())


def _refuse_another_study(plan: _Plan, ledger: Ledger) -> None:
    config = plan.config
    identity = _identity(plan)
    stored = dict(ledger.facts.get("identity", identity))
    if config.precision != "auto" and "precision" in ledger.facts:
        stored["precision"], identity["precision"] = ledger.facts["precision"], config.precision
    refuse_difference(plan.name, stored, identity)


def _identity(plan: _Plan) -> Identity:
    return identity_of(plan.space, plan.source, plan.config.seed, plan.config.limit_train)


def _run_trials(plan: _Plan, store: Store, ledger: Ledger, observer: Observer, interrupts: Interrupts) -> str | None:
    """Train what is left of the budget and publish the study; return why nothing more could be proposed."""
    config = plan.config
    settings = WorkerSettings(plan.source, config.limit_train, threads_per_worker(plan.workers), store.tracking_uri)
    with closing_workers(LocalExecutor(settings, plan.workers, store.root / "logs" / plan.name)) as executor:
        observer.note(f"starting {plan.workers} worker{'s' if plan.workers > 1 else ''}: TensorFlow takes some seconds")
        # The workers import TensorFlow while this process imports and opens MLflow and looks at the data.
        from fashion_study.tracking.runs import MlflowTracker

        data = load_study_data(plan.source, config.limit_train)
        split = ledger.facts.get("split", data.split_digest)
        refuse_difference(plan.name, {"split": split}, {"split": data.split_digest})
        # Not before the data are there: a limit that they cannot meet must leave no study behind.
        ledger.remember(identity=_identity(plan), split=split)
        client = store.client()
        experiment_id = store.experiment_id(client, plan.source.name)
        tracker = MlflowTracker(client, experiment_id)
        precision = _precision(config, ledger, executor, observer)
        run_id = tracker.open_study(_card(plan, precision), _data_cards(data), ledger.facts.get("run_id"))
        # Unpublished until the end, so that the next start takes up what a kill leaves, whatever its total.
        ledger.remember(run_id=run_id, experiment_id=experiment_id, published=None)
        for line in reconcile(ledger, tracker):
            observer.note(line)
        observer.begin(_title(plan, precision), ledger.counted(), config.trials)
        engine = OptunaEngine(ledger, plan.space, config.sampler, config.pruner, config.seed, plan.points)
        deadline = None if config.timeout is None else time.monotonic() + config.timeout
        assignment = Assignment(plan.space, config.seed, precision, config.trials, deadline)
        coordinator = Coordinator(
            assignment, engine, ledger, executor, tracker, observer, lambda: interrupts.received is not None
        )
        coordinator.run()
    observer.note("writing the study's figures")
    _publish(ledger, tracker, interrupts, config.trials)
    return coordinator.exhausted.reason if coordinator.exhausted else None


@contextmanager
def closing_workers(executor: LocalExecutor) -> Iterator[LocalExecutor]:
    """End every worker with the block, however it ends."""
    try:
        yield executor
    finally:
        executor.stop()


def _precision(config: StudyConfig, ledger: Ledger, executor: LocalExecutor, observer: Observer) -> Precision:
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


def _card(plan: _Plan, precision: Precision) -> StudyCard:
    config = plan.config
    return StudyCard(
        name=plan.name,
        space_yaml=plan.space.source_text,
        facts={
            "space": plan.space.name,
            "space_digest": plan.space.digest,
            "dataset": plan.source.name,
            "data_digest": plan.source.digest,
            "seed": config.seed,
            "limit_train": config.limit_train,
            "precision": precision.value,
            "training_version": TRAINING_VERSION,
        },
        settings={
            "sampler": config.sampler,
            "pruner": config.pruner,
            "trials": config.trials,
            "timeout": config.timeout,
            "workers": plan.workers,
            "fallback": plan.source.is_fallback,
            # With the defaults that another version could change.
            "command": _reproducing(plan, precision).command(always=("trials", "sampler", "pruner", "seed")),
        },
    )


def _reproducing(plan: _Plan, precision: Precision) -> StudyConfig:
    """Write out what was found, and leave out where things lie on this machine."""
    found = {"dataset": plan.source.name, "precision": precision.value}
    places = {name: StudyConfig.model_fields[name].default for name in ("store", "data_dir")}
    return plan.config.model_copy(update=found | places)


def _data_cards(data: StudyData) -> tuple[DataCard, ...]:
    # MLflow tells data sets apart by name and digest, so each part has a name of its own.
    parts = (("training", data.train), ("validation", data.validation))
    return tuple(
        DataCard(f"{data.source.name}-{context}", data.split_digest, len(split.labels), context)
        for context, split in parts
    )


def _title(plan: _Plan, precision: Precision) -> str:
    config = plan.config
    fallback = " (FALLBACK: Fashion-MNIST could not be had)" if plan.source.is_fallback else ""
    workers = f"{plan.workers} worker{'s' if plan.workers > 1 else ''}"
    return (
        f"study {plan.name}: space {plan.space.name}, data {plan.source.name}{fallback}, "
        f"{config.sampler} / {config.pruner}, seed {config.seed}, {workers}, {precision}"
    )


def _publish(ledger: Ledger, tracker: "MlflowTracker", interrupts: Interrupts, trials: int) -> None:
    """Write the leaderboard and the figures, and end the study's run."""
    ranked = rank(ledger.records())
    tracker.log_leaderboard(table(ranked))
    for name, figure in study_figures(ledger.study):
        tracker.log_figure(figure, name)
    tags = {"trials_counted": str(ledger.counted())}
    if (best := ledger.best()) is not None and best.run_id is not None:
        tags |= {"best_trial": str(best.number), "best_run": best.run_id}
    finished = interrupts.received is None or ledger.counted() >= trials
    tracker.close_study("FINISHED" if finished else "KILLED", tags)
    ledger.remember(published=ledger.counted())
