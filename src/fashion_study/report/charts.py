"""The figures and coloured tables of a report that are about its models, and how a figure stands in a page."""

import html
import re
from collections.abc import Callable, Sequence
from io import BytesIO, StringIO
from itertools import accumulate
from statistics import mean
from typing import Any

import matplotlib as mpl
import matplotlib.image
import matplotlib.style
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fashion_study.report.facts import Finals, ModelFacts, Reference, StudyFacts
from fashion_study.study.figures import (
    BASELINE,
    BEST,
    COMPLETE,
    GRID,
    OTHER,
    PERCENT,
    STYLE,
    legend_above,
    new_figure,
    scale_to_most,
    shortened,
)
from fashion_study.trial import BASELINE_NUMBER

# Between the examples of a pair, in pixels.
GAP = 2
MINUS = "\N{MINUS SIGN}"
# From worse to better; the confusion matrix takes the upper half.
SCALE = LinearSegmentedColormap.from_list("change", [BASELINE, "#ffffff", "#005288"])


@mpl.style.context(STYLE)
def recall_by_class(best: ModelFacts, baseline: ModelFacts) -> Figure:
    """Draw the recall of each class for the best model and the baseline, joined by a line."""
    names = sorted(best.classes, key=lambda name: best.recall[name])
    rows = range(len(names))
    before, after = ([model.recall[name] for name in names] for model in (baseline, best))
    text = "Recall of each class, best model and baseline side by side; the table has the figures."
    figure, axes = new_figure(0.9 + 0.29 * len(names), text)
    axes.hlines(rows, before, after, color=GRID, linewidth=3)
    axes.plot(before, rows, "s", color=BASELINE, markersize=6, label="baseline")
    axes.plot(after, rows, "o", color=BEST, markersize=7, label="best")
    axes.set_yticks(rows, [shortened(name) for name in names])
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="recall on validation images")
    axes.xaxis.set_major_formatter(PERCENT)
    legend_above(axes)
    return figure


@mpl.style.context(STYLE)
def front(facts: StudyFacts, size: str, label: str) -> Figure:
    """Draw the accuracy of each complete trial against a `size` of its model, named `label`.

    A line joins the models than which no smaller one is better.
    """
    highest = facts.highest
    found = [record for record in facts.records if record.number in facts.sizes]
    points = [(getattr(facts.sizes[record.number], size), record.objective or 0.0, record) for record in found]
    drawn = sorted(points, key=lambda point: point[:2])
    best_so_far = list(accumulate((objective for _, objective, _ in drawn), max))
    figure, axes = new_figure(3.0, f"Validation accuracy of {len(drawn)} complete trials against {label}.")
    sizes, objectives = [at for at, _, _ in drawn], [objective for _, objective, _ in drawn]
    axes.step(sizes, best_so_far, where="post", color=BEST, linewidth=1.4, label="best up to here")
    axes.plot(sizes, objectives, "o", color=COMPLETE, markersize=6)
    for at, objective, record in drawn:
        if record.number == BASELINE_NUMBER:
            axes.plot([at], [objective], "s", color=BASELINE, markersize=9, label="baseline")
        elif record is highest:
            axes.plot([at], [objective], "o", color=BEST, markersize=9, label=f"best ({record.label})")
    axes.set(xlabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:,.0f}" if at >= 1_000 else f"{at:.3g}"))
    scale_to_most(axes, objectives)
    return figure


@mpl.style.context(STYLE)
def finalists(finals: Finals, facts: StudyFacts) -> Figure:
    """Draw each finalist's repeats, their mean with its 95 % interval, and the score that made it a finalist."""
    rows = [finalist for finalist in reversed(finals.finalists) if finalist.objectives]
    text = f"Validation accuracy of the repeats of {len(rows)} finalists, with mean and interval."
    figure, axes = new_figure(1.2 + 0.5 * len(rows), text)
    for row, finalist in enumerate(rows):
        wins = finalist.trial == finals.winner
        color = BEST if wins else OTHER
        if finalist.interval is not None:
            axes.plot(finalist.interval, (row, row), color=color, linewidth=2, solid_capstyle="butt")
        axes.plot(finalist.objectives, [row] * len(finalist.objectives), "o", color=color, ms=5, alpha=0.55)
        axes.plot([mean(finalist.objectives)], [row], "D", color=color, markersize=8)
        record = facts.record(finalist.trial)
        if record is not None and record.objective is not None:
            axes.plot([record.objective], [row], "o", mfc="none", color=BASELINE, ms=9, mew=1.6)
    axes.plot([], [], "o", mfc="none", color=BASELINE, ms=9, mew=1.6, label="the trial's first score")
    axes.plot([], [], "o", color=OTHER, ms=5, alpha=0.55, label="repeat")
    axes.plot([], [], "D-", color=OTHER, ms=7, label="mean, 95 % interval")
    winner = {finals.winner: "  wins"}
    axes.set_yticks(range(len(rows)), [f"trial {each.trial:03d}{winner.get(each.trial, '')}" for each in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="validation accuracy")
    axes.xaxis.set_major_formatter(PERCENT)
    legend_above(axes)
    return figure


@mpl.style.context("default")
def strip(images: Sequence[npt.NDArray[np.uint8]]) -> bytes:
    """Lay images (each (height, width, channels), uint8) side by side as a PNG; grey ones dark on light."""
    height, _, channels = images[0].shape
    # 0 is the page's white where grey images are dark on light.
    gap = np.full((height, GAP, channels), 0 if channels == 1 else 255, np.uint8)
    canvas = np.concatenate([part for image in images for part in (gap, image)][1:], axis=1)
    buffer = BytesIO()
    pixels = canvas[..., 0] if channels == 1 else canvas
    mpl.image.imsave(buffer, pixels, cmap="gray_r", vmin=0, vmax=255, format="png")
    return buffer.getvalue()


def confusion_table(model: ModelFacts) -> str:
    """Return the confusion matrix as an HTML table, true classes as rows; the more images, the darker."""
    # The square root lifts the mistakes, which a linear scale drowns beside the diagonal.
    strength = np.sqrt(model.confusion / max(1, model.confusion.sum(axis=1).max()))
    caption = "Validation images by true class (rows) and by what the best model says (columns)"
    return _matrix("confusion", caption, model.classes, model.confusion, strength, str)


def change_table(best: ModelFacts, reference: Reference) -> str:
    """Return best minus reference as an HTML table: blue is better (more right, fewer wrong), orange worse."""
    change = best.confusion - reference.model.confusion
    strength = 0.85 * np.sqrt(np.abs(change) / max(1, np.abs(change).max()))
    is_right = np.eye(len(change), dtype=bool)
    sign = np.where(is_right, 1, -1) * np.sign(change)
    caption = f"Images more or fewer than with {reference.name}"
    return _matrix("change", caption, best.classes, change, sign * strength, _signed)


def svg(figure: Figure) -> str:
    """Return a figure as an element of a page; its text stays text and takes the page's font."""
    buffer, label = StringIO(), str(figure.get_label())
    # Names within one figure must not meet those of another on the same page.
    with mpl.style.context([*STYLE, {"svg.hashsalt": label}]):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", dpi=100, transparent=True, metadata=no_metadata)
    drawing = buffer.getvalue().partition("<svg")[2]
    drawing = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawing, count=2)
    # Matplotlib numbers its groups anew in every figure, and nothing refers to them.
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    return f'<svg role="img" aria-label="{html.escape(label)}"{drawing}'


def _signed(number: int) -> str:
    return f"{number:+d}".replace("-", MINUS) if number else "·"


def _matrix(
    name: str,
    caption: str,
    classes: Sequence[str],
    counts: npt.NDArray[np.int64],
    strength: npt.NDArray[np.float64],
    form: Callable[[Any], str],
) -> str:
    """Return `counts` as an HTML table; `strength` (-1 to 1) colours the cells."""
    columns = pd.Index(classes, name="true ↓ predicted →")
    on_diagonal = np.where(np.eye(len(classes), dtype=bool), "right", "")
    style = pd.DataFrame(counts, index=list(classes), columns=columns).style
    style.background_gradient(SCALE, axis=None, gmap=strength, vmin=-1, vmax=1, text_color_threshold=0.17)
    style.set_td_classes(pd.DataFrame(on_diagonal, index=list(classes), columns=columns))
    style.format(form).format_index(escape="html").format_index(escape="html", axis="columns")
    style.set_caption(f"<span>{html.escape(caption)}</span>")
    return style.to_html(table_uuid=name, table_attributes='class="matrix"')
