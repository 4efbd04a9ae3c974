"""The promises of a report's looks: it fits a laptop, a phone and paper, and makes no request."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request

from fashion_study.report.page import render
from tests.support.study_facts import facts

LAPTOP, PHONE = (1280, 800), (390, 844)
HEADINGS = (
    "In short",
    "The search",
    "What was asked",
    "Budget spent",
    "Leaderboard",
    "Best against baseline",
    "Size",
    "Finalists",
    "Which hyperparameters matter",
    "What the pruner saved",
    "Confusion matrix",
    "The most confused pairs",
    "Reproduce it, go on",
)
# What sticks out of the page's width without lying in a box that scrolls.
STICKING_OUT = """() => [...document.body.querySelectorAll('*')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, nav, svg'))
    .map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(facts()), encoding="utf-8")
    return path


class Opened:
    """A page in the browser, with every request that it made and every complaint of the browser."""

    def __init__(self, browser: Browser, report: Path, size: tuple[int, int]) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.page.on("request", self._requested)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(report.as_uri())

    def _requested(self, request: Request) -> None:
        if not request.url.startswith("data:"):
            self.requests.append(request.url)


@pytest.fixture(params=[LAPTOP, PHONE], ids=["laptop", "phone"])
def opened(request: pytest.FixtureRequest, chromium: Browser, report: Path) -> Iterator[Opened]:
    opened = Opened(chromium, report, request.param)
    yield opened
    opened.page.close()


def test_the_page_fits_the_width_and_only_boxes_scroll(opened: Opened, tmp_path: Path) -> None:
    opened.page.screenshot(path=tmp_path / "report.png", full_page=True)
    width = opened.page.viewport_size["width"] if opened.page.viewport_size else 0
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    assert opened.page.evaluate(STICKING_OUT) == []
    assert (tmp_path / "report.png").stat().st_size > 50_000


def test_the_page_shows_all_its_parts_and_pictures(opened: Opened) -> None:
    found = tuple(opened.page.locator("h2").all_inner_texts())
    assert found == HEADINGS
    assert opened.page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth)") == [178] * 6
    drawings = opened.page.evaluate("[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect())")
    assert len(drawings) == 8
    assert all(drawing["width"] > 300 and drawing["height"] > 80 for drawing in drawings)


def test_the_page_makes_no_request_and_logs_no_error(opened: Opened, report: Path) -> None:
    assert opened.requests == [report.as_uri()]
    assert opened.complaints == []


def test_text_is_as_large_on_a_phone_as_a_reader_needs(chromium: Browser, report: Path) -> None:
    phone = Opened(chromium, report, PHONE)
    smallest = phone.page.evaluate(
        """() => Math.min(...[...document.querySelectorAll('figure svg text')]
            .map(t => t.getBoundingClientRect().height))"""
    )
    body = phone.page.evaluate("parseFloat(getComputedStyle(document.querySelector('main p')).fontSize)")
    phone.page.close()
    assert smallest >= 9
    assert body >= 14


def test_on_paper_no_table_is_clipped(chromium: Browser, report: Path, tmp_path: Path) -> None:
    # An A4 page within the margins of the page's own style is 184 mm wide: 695 pixels.
    paper = Opened(chromium, report, (695, 1017))
    paper.page.emulate_media(media="print")
    clipped = paper.page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    )
    hidden = paper.page.evaluate("[...document.querySelectorAll('.scroll')].map(e => getComputedStyle(e).overflowX)")
    wide = paper.page.evaluate("document.documentElement.scrollWidth")
    navigation = paper.page.locator("nav").is_visible()
    paper.page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    paper.page.close()
    assert clipped == 0
    assert set(hidden) == {"visible"}
    assert wide == 695
    assert not navigation
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
