"""The promises of the fork server that need the real worker."""

from contextlib import closing
from pathlib import Path

from fashion_study.data.catalog import locate
from fashion_study.executors.local import WORKER_MODULE, LocalExecutor
from fashion_study.trial import ProbeOrder, ProbeResult, WorkerSettings
from tests.support.processes import workers_running


def test_the_server_has_one_thread_and_its_workers_train(tmp_path: Path) -> None:
    settings = WorkerSettings(locate("digits"), None, 1, "sqlite:///nowhere.db", records=False)
    with closing(LocalExecutor(settings, 1, tmp_path)) as executor:
        assert isinstance(executor.probe(ProbeOrder()), ProbeResult)

        (worker,) = workers_running(WORKER_MODULE, None)
        server = worker.parent()
        assert server is not None
        assert server.num_threads() == 1
        assert worker.num_threads() > 1
