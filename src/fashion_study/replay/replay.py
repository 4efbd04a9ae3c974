"""The replay of a trial: trained again, and compared with its run."""

from typing import TYPE_CHECKING

from fashion_study.replay.request import ReplayConfig
from fashion_study.store.failures import store_failures
from fashion_study.store.store import Store, find_store
from fashion_study.study.progress import NullObserver, Observer

if TYPE_CHECKING:
    from fashion_study.replay.comparison import Replay
    from fashion_study.replay.recorded import Recorded


def replay(config: ReplayConfig, observer: Observer | None = None) -> "Replay":
    """Train a trial or a finalist's repeat again, in a worker as then, and compare it with its run to the bit.

    One that was pruned is trained up to where it was pruned. Nothing is written into the store.

    Raises:
        BadInputError: there is no such trial, or it has no end that could be compared.
        StoreError: the store cannot be read, or what is needed is missing from it.
        DataError: the images are missing or others.
        StudyError: the worker died.
    """
    observer = observer or NullObserver()
    config.check()
    store = find_store(config.store)
    with store_failures(store, "python -m experiments.doctor looks for damage."):
        recorded = _find(store, config)
    from fashion_study.replay.again import find_images, train_again
    from fashion_study.replay.comparison import compare

    source = find_images(recorded.images, config.data_dir)
    observer.begin(_title(recorded), 0, 1, "trainings")
    if recorded.assumed_threads:
        observer.note("its run does not name its threads: as many are taken as a worker of its study has here")
    return compare(recorded, train_again(recorded, source, store.tracking_uri, observer))


def _find(store: Store, config: ReplayConfig) -> "Recorded":
    run_id = config.trial
    # Imported where needed: what can be refused without MLflow does not wait for it.
    if config.number is not None:
        from fashion_study.replay.choice import run_of_trial

        run_id = run_of_trial(store, config.number, config.study)
    from fashion_study.replay.recorded import read_recorded

    return read_recorded(store.client(), run_id, config.study)


def _title(recorded: "Recorded") -> str:
    spec, threads = recorded.spec, recorded.threads
    return f"{recorded.label}, again: seed {spec.seed}, {spec.precision}, {threads} thread{'s' if threads > 1 else ''}"
