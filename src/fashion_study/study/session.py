"""An open study: the stores and the workers of one start of it."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn

from optuna.study import StudyDirection

import fashion_study.executors.local as local
from fashion_study.data.catalog import load_dataset
from fashion_study.errors import BadInputError, StoreError
from fashion_study.executors.executor import Executor
from fashion_study.executors.local import BYTES_PER_WORKER, LocalExecutor, threads_per_worker
from fashion_study.signals import StopSignals
from fashion_study.store.checkpoints import Checkpoints
from fashion_study.store.mlflow_server import RetryNotifier
from fashion_study.store.relocation import moves, rebase
from fashion_study.store.store import Store
from fashion_study.store.trials import TRACKED_AT, TrialStorage
from fashion_study.study.budget import (
    BudgetPlan,
    Rates,
    plan_budget,
    points_to_measure,
    time_to_plan,
    trials_in,
)
from fashion_study.study.loop import Loop, Source
from fashion_study.study.plan import Plan, refuse_difference
from fashion_study.study.progress import Observer
from fashion_study.study.reconcile import reconcile
from fashion_study.trial import Precision, ProbeOrder, WorkerSettings

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from fashion_study.study.retention import ModelKeeper
    from fashion_study.tracking.runs import StudyRuns


@dataclass(frozen=True)
class OwnedStudy:
    """A study that no other process runs: its plan, its trial storage, its observer, whether it registers a model.

    `began` is when this run of it did, on the monotonic clock.
    """

    plan: Plan
    store: Store
    trial_storage: TrialStorage
    observer: Observer
    stop_signals: StopSignals
    waits: RetryNotifier
    require_ownership: Callable[[], None]
    registers: bool
    began: float = field(default_factory=time.monotonic)

    def is_interrupted(self) -> bool:
        """Return whether the user wants the study to end.

        Raises:
            StoreError: another coordinator may own the study by now, so nothing more may be begun.
        """
        self.require_ownership()
        return self.stop_signals.is_stop_requested()

    def refuse_another(self) -> None:
        """Refuse a stored study that is another one than the plan's.

        Raises:
            BadInputError: they differ.
        """
        _refuse_foreign(self.trial_storage)
        config, asked = self.plan.config, self.plan.fingerprint
        stored = dict(self.trial_storage.attrs.get("identity", asked))
        if config.precision != "auto" and "precision" in self.trial_storage.attrs:
            stored["precision"], asked["precision"] = self.trial_storage.attrs["precision"], config.precision
        refuse_difference(self.plan.name, stored, asked)

    def model_keeper(self, client: "MlflowClient") -> "ModelKeeper":
        """Return what deletes the model files that are not to be kept."""
        from fashion_study.study.retention import ModelKeeper

        artifacts = self.store.root / "artifacts" if self.store.is_embedded else None
        return ModelKeeper(client, self.trial_storage, self.plan.config.keep_models, artifacts, self.observer.warn)


@dataclass
class Session:
    """A study whose stores and workers are ready, until when it may begin something, and how long workers trained.

    With a budget of time its search ends at a deadline of its own, so that something is left for the finalists, and
    running attempts are stopped at a deadline that `is_hard`. `total` is how many trials there are to be, `rates` what
    was measured of their epochs.
    """

    study: OwnedStudy
    client: "MlflowClient"
    tracker: "StudyRuns"
    executor: Executor
    precision: Precision
    validation_images: int
    deadline: float
    search_deadline: float
    is_hard: bool
    total: int
    rates: Rates | None
    checkpoints: Checkpoints
    busy_seconds: float = 0.0

    def train(
        self,
        source: Source,
        deadline: float,
        epochs: float = math.inf,
        after_result: Callable[[], None] = lambda: None,
    ) -> None:
        """Train what a source has, until it has nothing left, the deadline is over, or the study is to end."""
        study, limits = self.study, (deadline, epochs, self.is_hard)
        loop = Loop(source, self.executor, study.observer, study.is_interrupted, *limits, after_result)
        loop.run()
        self.busy_seconds += loop.busy_seconds

    def trials_that_fit(self) -> int:
        """Return how many more trials the time is enough for that a budget has left for the search."""
        if self.rates is None or self.study.is_interrupted():
            return 0
        left, records = self.search_deadline - time.monotonic(), self.study.trial_storage.records()
        return trials_in(self.study.plan, max(1, self.executor.slots), left, self.rates, records)


def _refuse_foreign(trial_storage: TrialStorage) -> None:
    name = trial_storage.name
    if (original := trial_storage.original) is not None:
        found = f"is a copy of {original!r}, and both name the same runs"
    elif any(direction is not StudyDirection.MAXIMIZE for direction in trial_storage.study.directions):
        found = "was made by another program, to minimize a value or to optimize several"
    elif "identity" not in trial_storage.attrs and trial_storage.next_number:
        found = "was made by another program, and has trials already"
    else:
        return
    raise BadInputError(
        f"Study {name!r} of the trial storage {found}. Expected one that run_study began, or an empty one that "
        "maximizes. Begin another with --study; optuna delete-study deletes this one."
    )


@contextmanager
def open_executor(plan: Plan, store: Store, observer: Observer) -> Iterator[Executor]:
    """Start the workers of a study, on this machine or on a Ray cluster.

    Raises:
        BadInputError: the cluster cannot be used, or not with this store.
    """
    config, log_dir = plan.config, store.root / "logs" / plan.name
    kept = store.checkpoints(plan.name)
    kept.mkdir(parents=True, exist_ok=True)
    starting = f"starting {plan.workers_in_words}: TensorFlow takes some seconds"
    is_local, workers, cpus = config.executor == "local", plan.workers or 1, config.worker_cpus or 1.0
    settings = WorkerSettings(
        plan.source,
        config.limit_train,
        threads_per_worker(workers) if is_local else max(1, int(cpus)),
        store.tracking_uri,
        config.trial_timeout,
        config.worker_memory,
        config.max_parameters,
        checkpoints=kept,
    )
    if is_local:
        observer.note(starting)
        with closing(LocalExecutor(settings, workers, log_dir)) as executor:
            yield executor
        return
    # Imported where needed: Ray is an extra, and takes a second.
    from fashion_study.executors.cluster import Resources, connected
    from fashion_study.executors.ray import RayExecutor, WorkerContext

    with connected(config.cluster_address(), store.tracking_uri) as cluster:
        gpus = config.worker_gpus if config.worker_gpus is not None else float(cluster.has_gpus())
        resources = Resources(cpus, gpus, config.worker_memory or int(BYTES_PER_WORKER))
        cluster.check_room(resources, plan.workers)
        observer.note(starting)  # Not before: a cluster that cannot be used starts nothing.
        # What a worker on another machine needs: MLflow's settings, its credentials among them.
        environment = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
        if not gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all of them visible.
        context = WorkerContext(settings, log_dir, local.WORKER_MODULE, environment)
        with closing(RayExecutor(cluster, context, resources, plan.workers, observer.warn)) as executor:
            yield executor


def open_session(study: OwnedStudy, executor: Executor) -> Session | None:
    """Open the stores and reconcile them, while the workers import TensorFlow.

    Return None where the study is interrupted, or its time is over, before it is known in which precision to train.
    """
    from fashion_study.tracking.runs import StudyRuns
    from fashion_study.tracking.search import find_run

    plan, store, trial_storage, observer = study.plan, study.store, study.trial_storage, study.observer
    data = load_dataset(plan.source, plan.config.limit_train)
    split = trial_storage.attrs.get("split", data.split_digest)
    refuse_difference(plan.name, {"split": split}, {"split": data.split_digest})
    # Not before the data are there: a limit that they cannot meet must leave no study behind.
    trial_storage.set_attrs(identity=plan.fingerprint, split=split)
    client = store.client()
    _follow_a_move(store, observer)
    known = trial_storage.attrs.get("run_id")
    run = find_run(client, known) if known else None
    if known and run is None:
        _refuse_a_missing_run(plan.name, known, trial_storage, store)
    # Of a study that goes on by its id: a user may have renamed it.
    experiment_id = store.experiment_id(client, plan.source.name, run.info.experiment_id if run else None)
    config = plan.config
    ends = study.began + (math.inf if config.budget is None else time_to_plan(config.budget))
    deadline = min(time.monotonic() + (config.timeout or math.inf), ends)
    precision = _precision(study, executor, deadline)
    if precision is None:
        return None
    images = len(data.train.labels), len(data.validation.labels)
    planned = _plan_search(study, executor, precision, images, deadline)
    if planned is None:
        return None
    search_deadline, total, rates = planned
    if run is not None and run.info.lifecycle_stage != "active":
        client.restore_run(run.info.run_id)
    tracker = StudyRuns(client, experiment_id, known)
    run_id = tracker.open_study(plan.metadata(precision, total), data, trial_storage.token)
    # Unpublished until the end, so that the next start takes up what a kill leaves, whatever its total.
    trial_storage.set_attrs(run_id=run_id, experiment_id=experiment_id, published=None)
    if store.database is not None:
        trial_storage.set_attrs(**{TRACKED_AT: store.tracked_at})
    folder = store.checkpoints(plan.name)
    checkpoints = Checkpoints(folder, plan.source.digest, config.limit_train, disk=config.checkpoint_disk)
    for line in (*reconcile(trial_storage, tracker, folder), *trial_storage.of_other_programs()):
        observer.note(line)
    return Session(
        study,
        client,
        tracker,
        executor,
        precision,
        len(data.validation.labels),
        deadline,
        search_deadline,
        deadline == ends,
        total,
        rates,
        checkpoints,
    )


def _plan_search(
    study: OwnedStudy, executor: Executor, precision: Precision, images: tuple[int, int], deadline: float
) -> tuple[float, int, Rates | None] | None:
    """Return until when to search, for how many trials, and how long their epochs take, which a budget asks to know.

    None where the study is interrupted, or its time is over, before that is known.
    """
    plan, records = study.plan, study.trial_storage.records()
    if plan.config.budget is None:
        return deadline, plan.config.trials, None
    study.observer.note("measuring how long an epoch takes")
    order = ProbeOrder(precision, points_to_measure(plan))
    probe = executor.probe(order, lambda: _is_over(study, deadline))
    if probe is None:
        return None
    rates = Rates.measured(probe.costs, *images)
    workers, began = max(executor.slots, plan.workers or 1), time.monotonic()
    budget = plan_budget(plan, workers, max(0.0, deadline - began), rates, records)
    for line in budget.lines:
        study.observer.note(line)
    total = min(plan.config.trials, study.trial_storage.counted() + budget.trials)
    return began + budget.search_seconds, total, rates


def foresee(plan: Plan, budget: float) -> BudgetPlan:
    """Plan what a new study would do in a budget of seconds, as a worker on this machine trains; nothing is kept."""
    config, workers = plan.config, plan.workers or 1
    data = load_dataset(plan.source, config.limit_train)
    precision = None if config.precision == "auto" else Precision(config.precision)
    threads = threads_per_worker(workers)
    settings = WorkerSettings(plan.source, config.limit_train, threads, "", max_parameters=config.max_parameters)
    with TemporaryDirectory() as folder, closing(LocalExecutor(settings, 1, Path(folder))) as executor:
        probe = executor.probe(ProbeOrder(precision, points_to_measure(plan)))
    assert probe is not None  # Nothing can interrupt it.
    rates = Rates.measured(probe.costs, len(data.train.labels), len(data.validation.labels))
    return plan_budget(plan, workers, time_to_plan(budget), rates)


def _is_over(study: OwnedStudy, deadline: float) -> bool:
    return study.is_interrupted() or time.monotonic() >= deadline


def _follow_a_move(store: Store, observer: Observer) -> None:
    for move in moves(store):
        if (backup := rebase(store, move)) is not None:
            observer.warn(
                f"the store was moved from {move.old}: its addresses point here now; a copy from before is {backup}"
            )


def _refuse_a_missing_run(name: str, run_id: str, trial_storage: TrialStorage, store: Store) -> NoReturn:
    """Refuse to go on without a study's own run; a trial storage on a server says where it is kept."""
    if (place := trial_storage.attrs.get(TRACKED_AT)) not in (None, store.tracked_at):
        raise StoreError(
            f"Study {name!r} keeps its runs at {place}, and its own run is not at {store.tracked_at}. "
            "Expected the same place for all of them. Set MLFLOW_TRACKING_URI, or name the folder with --store."
        )
    raise StoreError(
        f"The run {run_id} of study {name!r} is not at {store.tracked_at}. Expected all runs of a study in one place. "
        "Set MLFLOW_TRACKING_URI, or leave it unset, as when the study was begun; where that run was deleted for good, "
        "begin another study with --study."
    )


def _precision(study: OwnedStudy, executor: Executor, deadline: float) -> Precision | None:
    """Return the study's precision: the stored one, the one asked for, or the faster one on this machine."""
    config, trial_storage = study.plan.config, study.trial_storage
    if "precision" not in trial_storage.attrs:
        if config.precision != "auto":
            trial_storage.set_attrs(precision=config.precision)
        elif (probe := executor.probe(ProbeOrder(), lambda: _is_over(study, deadline))) is None:
            return None
        else:
            trial_storage.set_attrs(precision=probe.precision.value, precision_probe=probe.images_per_second)
            rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in probe.images_per_second.items())
            study.observer.note(f"precision {probe.precision}: the faster one here (images/s: {rates})")
    return Precision(trial_storage.attrs["precision"])
