"""The promise of pages about names that mean harm: a real browser runs nothing of them and asks for nothing."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from fashion_study.promotion.view import decision_page
from fashion_study.report.page import render
from tests.hostile.names import ATTACKS, hostile_decision
from tests.support.study_facts import hostile_facts

PAGES = {
    "report": lambda attack: render(hostile_facts(attack)),
    "decision": lambda attack: decision_page(hostile_decision(attack)),
}


@pytest.mark.parametrize("kind", PAGES)
def test_a_browser_runs_nothing_of_a_hostile_name(kind: str, chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGES[kind](" ".join(ATTACKS.values())), encoding="utf-8")
    page = chromium.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    for element in page.locator("h1, td, th, img").all()[:40]:
        element.dispatch_event("mouseover")
    assert page.evaluate("typeof sung") == "undefined"
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert said == []
    page.close()
