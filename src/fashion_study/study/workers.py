"""The executor that a study's config asks for, ended with the block."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fashion_study.executors import local
from fashion_study.executors.executor import Executor, closing_workers
from fashion_study.executors.local import BYTES_PER_WORKER, Limits, LocalExecutor, threads_per_worker
from fashion_study.store.store import Store
from fashion_study.study.plan import Plan
from fashion_study.study.progress import Observer
from fashion_study.trial import WorkerSettings

# What another machine has to know of this one's environment: MLflow's settings, the log-in among them.
TRAVELS = "MLFLOW_"


@contextmanager
def workers_of(plan: Plan, store: Store, observer: Observer) -> Iterator[Executor]:
    """Start the workers of a study, on this machine or on a Ray cluster.

    Raises:
        BadInputError: the cluster cannot be used, or not with this store.
    """
    starting = f"starting {plan.workers_of}: TensorFlow takes some seconds"
    if plan.config.executor == "local":
        observer.note(starting)
        with closing_workers(_local(plan, store)) as executor:
            yield executor
    else:
        with _on_ray(plan, store, observer, starting) as executor:
            yield executor


def _local(plan: Plan, store: Store) -> LocalExecutor:
    workers = plan.workers or 1
    return LocalExecutor(
        _settings(plan, store, threads_per_worker(workers)), workers, _log_dir(plan, store), _limits(plan)
    )


@contextmanager
def _on_ray(plan: Plan, store: Store, observer: Observer, starting: str) -> Iterator[Executor]:
    # Not before it is asked for: it is an extra, and takes a second.
    from fashion_study.executors.cluster import Resources, connected
    from fashion_study.executors.ray import RayExecutor
    from fashion_study.executors.supervisor import WorkerContext

    config = plan.config
    with connected(config.cluster_address(), store.tracking_uri) as cluster:
        cpus = config.worker_cpus or 1.0
        gpus = config.worker_gpus if config.worker_gpus is not None else float(cluster.has_gpus())
        needed = Resources(cpus, gpus, config.worker_memory or int(BYTES_PER_WORKER))
        cluster.refuse_without_room(needed, plan.workers)
        observer.note(starting)  # Not before: a cluster that cannot be used starts nothing.
        environment = {name: value for name, value in os.environ.items() if name.startswith(TRAVELS)}
        if not gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all of them in sight.
        worker_context = WorkerContext(
            _settings(plan, store, max(1, int(cpus))),
            _limits(plan),
            _log_dir(plan, store),
            local.WORKER_MODULE,
            environment,
        )
        with closing_workers(RayExecutor(cluster, worker_context, needed, plan.workers, observer.warn)) as executor:
            yield executor


def _settings(plan: Plan, store: Store, threads: int) -> WorkerSettings:
    return WorkerSettings(plan.source, plan.config.limit_train, threads, store.tracking_uri)


def _limits(plan: Plan) -> Limits:
    return Limits(plan.config.trial_timeout, plan.config.worker_memory)


def _log_dir(plan: Plan, store: Store) -> Path:
    return store.root / "logs" / plan.name
