"""The promises of pages, figures and tables about names that mean harm: shown as they are, never run."""

import io
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from fashion_study.promotion.view import decision_page, show_decision
from fashion_study.report.page import render
from fashion_study.text import spreadsheet_cell
from fashion_study.training.figures import confusion_matrix_figure, prediction_grid_figure
from tests.hostile.names import ATTACKS, hostile_decision
from tests.support.study_facts import hostile_facts

ACTIVE = {"script", "iframe", "object", "embed", "base", "form", "link", "foreignobject", "animate", "set"}


class Structure(HTMLParser):
    """The tags of a page with the names of their attributes, and the words between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def without_drawings(page: str) -> str:
    return re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def require_inert(page: str) -> None:
    for tag, names in Structure(page).tags:
        assert tag not in ACTIVE
        assert not any(name.startswith("on") for name in names)


def test_a_report_of_hostile_names_has_the_same_html_tags() -> None:
    attack = " ".join(ATTACKS.values())
    page, plain = render(hostile_facts(attack)), Structure(without_drawings(render(hostile_facts("plain"))))
    require_inert(page)
    found = Structure(without_drawings(page))
    assert found.tags == plain.tags
    assert found.words.count(attack) > 20


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_decision_of_hostile_names_has_the_same_html_tags(attack: str) -> None:
    page, plain = decision_page(hostile_decision(attack)), Structure(decision_page(hostile_decision("plain")))
    require_inert(page)
    found = Structure(page)
    assert found.tags == plain.tags
    assert found.words.count(attack) >= 5


@pytest.mark.parametrize("text", ["\x1b]0;evil\x07\x1b[2J", "\N{RIGHT-TO-LEFT OVERRIDE}", "one\nPromoted: two", "\r"])
def test_a_decision_on_a_terminal_moves_no_cursor(text: str) -> None:
    console = Console(file=io.StringIO(), width=200)
    show_decision(hostile_decision(text), console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "".join(shown.splitlines()).isprintable()
    assert "Promoted by force" in shown
    assert not any(line.startswith("Promoted: two") for line in shown.splitlines())


def test_figures_show_hostile_names_as_they_are() -> None:
    names = list(ATTACKS.values())
    images = np.zeros((30, 28, 28, 1), dtype=np.uint8)
    labels = np.arange(30) % len(names)
    probabilities = np.full((30, len(names)), 0.5, dtype=np.float32)
    figures: list[Figure] = [
        confusion_matrix_figure(np.eye(len(names), dtype=np.int64), names, names[0]),
        prediction_grid_figure(images, labels, (labels + 1) % len(names), probabilities, names, seed=0),
    ]
    for figure in figures:
        figure.savefig(BytesIO(), format="png", dpi=30)
        shown = "".join(text.get_text() for text in figure.findobj(Text))
        assert all(name in shown for name in names)


@pytest.mark.parametrize("value", [-1, -0.5, 3, None, "plain", "a=b", "", "1-2", True])
def test_what_is_no_formula_is_left_as_it_is(value: object) -> None:
    assert spreadsheet_cell(value) == value
    assert type(spreadsheet_cell(value)) is type(value)
