"""The executor that a study's config asks for, ended with the block."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fashion_study.executors import local
from fashion_study.executors.executor import Executor, closing_workers
from fashion_study.executors.local import BYTES_PER_WORKER, Limits, LocalExecutor, threads_per_worker
from fashion_study.store.store import Store
from fashion_study.study.plan import Plan
from fashion_study.study.progress import Observer
from fashion_study.trial import WorkerSettings

# Environment variables that a worker on another machine needs: MLflow's settings, its credentials among them.
TRAVELS = "MLFLOW_"


@contextmanager
def workers_of(plan: Plan, store: Store, observer: Observer) -> Iterator[Executor]:
    """Start the workers of a study, on this machine or on a Ray cluster.

    Raises:
        BadInputError: the cluster cannot be used, or not with this store.
    """
    config, log_dir = plan.config, store.root / "logs" / plan.name
    starting = f"starting {plan.workers_of}: TensorFlow takes some seconds"
    limits = Limits(config.trial_timeout, config.worker_memory)
    if config.executor == "local":
        observer.note(starting)
        workers = plan.workers or 1
        settings = WorkerSettings(plan.source, config.limit_train, threads_per_worker(workers), store.tracking_uri)
        with closing_workers(LocalExecutor(settings, workers, log_dir, limits)) as executor:
            yield executor
        return
    # Imported where needed: Ray is an extra, and takes a second.
    from fashion_study.executors.cluster import Resources, connected
    from fashion_study.executors.ray import RayExecutor
    from fashion_study.executors.supervisor import WorkerContext

    with connected(config.cluster_address(), store.tracking_uri) as cluster:
        cpus = config.worker_cpus or 1.0
        gpus = config.worker_gpus if config.worker_gpus is not None else float(cluster.has_gpus())
        resources = Resources(cpus, gpus, config.worker_memory or int(BYTES_PER_WORKER))
        cluster.check_room(resources, plan.workers)
        observer.note(starting)  # Not before: a cluster that cannot be used starts nothing.
        environment = {name: value for name, value in os.environ.items() if name.startswith(TRAVELS)}
        if not gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all of them visible.
        settings = WorkerSettings(plan.source, config.limit_train, max(1, int(cpus)), store.tracking_uri)
        context = WorkerContext(settings, limits, log_dir, local.WORKER_MODULE, environment)
        with closing_workers(RayExecutor(cluster, context, resources, plan.workers, observer.warn)) as executor:
            yield executor
