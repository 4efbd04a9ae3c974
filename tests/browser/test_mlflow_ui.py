from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect

from fashion_study.mlflow_ui.server import Pages, Server, choose_port, find_pages, serve
from fashion_study.store.store import open_store
from fashion_study.tracking.registry import CHALLENGER, CHAMPION, Registry
from tests.support.finished import copy_store

# A study and a server are started, each with a limit of its own.
pytestmark = pytest.mark.timeout(900)

STUDY = "digits-smoke"
# Not a measure of anything: how long a page may take on a busy machine before something must be wrong.
PATIENCE_MS = 90_000


@dataclass(frozen=True)
class Finished:
    """A study with three complete trials, the best registered as champion and challenger, and its server."""

    server: Server
    pages: Pages
    trials: list[Run]

    @property
    def names(self) -> list[str]:
        """Return the trials' names as a browser shows them: with single spaces."""
        return [" ".join(str(run.info.run_name).split()) for run in self.trials]


@pytest.fixture(scope="module")
def finished(
    chromium: Browser,  # noqa: ARG001 - without it no study needs to be run
    finished_study: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Finished]:
    store = open_store(copy_store(finished_study, tmp_path_factory.mktemp("ui") / "store"))
    client = store.client()
    registry = Registry(client)
    (model,) = registry.models()
    for alias in (CHALLENGER, CHAMPION):
        registry.move_alias(model.name, alias, model.versions[0].number)
    trials = client.search_runs(["1"], "tags.state = 'complete'", order_by=["metrics.objective DESC"])
    assert len(trials) == 3
    with serve(store, choose_port(0)) as server:
        yield Finished(server, find_pages(store), trials)


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1500, "height": 1000})
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    yield context.new_page()
    context.close()


def opened(page: Page, finished: Finished, path: str, first: Locator) -> None:
    page.goto(finished.server.address + path, wait_until="load")
    expect(first).to_be_visible()
    # The assistant's panel lies beside every page until it is closed.
    close = page.get_by_role("button", name="Close")
    try:
        close.click(timeout=3_000)
    except TimeoutError:
        return
    expect(close).to_have_count(0)


def unfold(page: Page) -> None:
    """Show the runs nested under the study's."""
    cell = page.get_by_role("gridcell").filter(has=page.get_by_role("link", name=STUDY))
    cell.get_by_role("button").click()


def test_the_runs_of_the_study_are_listed_with_their_names(page: Page, finished: Finished) -> None:
    opened(page, finished, finished.pages.experiment, page.get_by_role("link", name=STUDY))
    unfold(page)
    for name in finished.names:
        expect(page.get_by_role("link", name=name)).to_be_visible()


def test_two_runs_are_compared(page: Page, finished: Finished) -> None:
    opened(page, finished, finished.pages.experiment, page.get_by_role("link", name=STUDY))
    unfold(page)
    for name in finished.names[:2]:
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=name))
        row.get_by_role("checkbox", name="toggle row selection").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name="Comparing 2 Runs from 1 Experiment")).to_be_visible()
    for name in finished.names[:2]:
        expect(page.get_by_role("cell", name=name)).to_be_visible()


def test_the_comparison_shows_complete_trials_the_best_first(page: Page, finished: Finished) -> None:
    assert finished.pages.comparison is not None
    heading = page.get_by_role("heading", name="Comparing 3 Runs from 1 Experiment")
    opened(page, finished, finished.pages.comparison, heading)
    row = page.get_by_role("row").filter(has_text="Run Name:")
    expect(row.get_by_role("cell")).to_have_text(finished.names)


def test_the_picture_of_the_confusion_matrix_is_shown(page: Page, finished: Finished) -> None:
    best = finished.trials[0].info
    path = f"/#/experiments/{best.experiment_id}/runs/{best.run_id}/artifacts"
    opened(page, finished, path, page.get_by_text("confusion_matrix.png"))
    page.get_by_text("confusion_matrix.png").click()
    picture = page.get_by_role("img", name="confusion_matrix.png")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300


def test_the_page_of_the_registered_model_shows_its_aliases(page: Page, finished: Finished) -> None:
    opened(page, finished, "/#/models/digits-cnn", page.get_by_role("heading", name="digits-cnn"))
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="Version 1"))
    for alias in (CHALLENGER, CHAMPION):
        expect(row.get_by_role("status", name=alias)).to_be_visible()


ASK = """
async ([address, mode]) => {
    const body = JSON.stringify({name: `made by ${location.origin} with ${mode}`});
    const headers = {"Content-Type": mode === "cors" ? "application/json" : "text/plain"};
    try {
        const path = "/ajax-api/2.0/mlflow/experiments/create";
        return String((await fetch(address + path, {method: "POST", mode, headers, body})).status);
    } catch (error) { return error.name; }
}
"""
READ = """
async (address) => {
    try {
        return String((await fetch(address + "/ajax-api/2.0/mlflow/experiments/search?max_results=9")).status);
    } catch (error) { return error.name; }
}
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[str]:
    """Serve a page at another port of this machine."""
    (tmp_path / "index.html").write_text("<!doctype html><title>another page</title>")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{other.server_port}"
        other.shutdown()


def test_another_port_s_page_neither_writes_nor_reads(page: Page, finished: Finished, elsewhere: str) -> None:
    address = finished.server.address
    page.goto(elsewhere)
    # Without CORS a browser sends at once and hides the answer, with it it asks first.
    assert page.evaluate(ASK, [address, "no-cors"]) == "0"
    assert page.evaluate(ASK, [address, "cors"]) == "TypeError"
    assert page.evaluate(READ, address) == "TypeError"
    page.goto(address)
    assert page.evaluate(READ, address) == "200"
    assert page.evaluate(ASK, [address, "cors"]) == "200"
    made = MlflowClient(address).search_experiments(filter_string="name LIKE 'made by%'")
    assert [experiment.name for experiment in made] == [f"made by {address} with cors"]
