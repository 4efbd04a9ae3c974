"""The figures of a report, as SVG that stands in a page: its text stays text, and takes the page's font."""

import html
import re
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from itertools import accumulate
from statistics import mean
from typing import Any

import matplotlib as mpl
import matplotlib.image
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.typing import RcKeyType

from fashion_study.report.facts import Finals, ModelFacts, StudyFacts
from fashion_study.store.trials import TrialRecord
from fashion_study.trial import TrialState

# Told apart by people who see no red or no green too (after Okabe and Ito), and dark enough for text on white.
BEST, BASELINE, COMPLETE, PRUNED, OTHER = "#0067a8", "#b84300", "#6d9fc0", "#9aa5b1", "#5d6b7a"
INK, TICKS, GRID = "#1c2733", "#4a5563", "#e3e7eb"
# In inches of 72 to the point: as wide as a phone is in pixels, so that text there is as large as it says here.
WIDTH = 5.1
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g} %")
# Beyond so many faint curves a picture within the figure is smaller than its lines.
MOST_LINES = 200
GAP = 2
# A longer name beside a figure leaves no room for the figure.
LONGEST_NAME = 30
COMPLETE_STYLE: dict[str, Any] = {"color": COMPLETE, "linewidth": 1.2, "alpha": 0.9}
OTHERS_STYLE: dict[str, Any] = {"color": PRUNED, "linewidth": 1, "alpha": 0.8}
STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": PRUNED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": TICKS,
    "ytick.color": TICKS,
    "legend.frameon": False,
    "text.parse_math": False,
}


@mpl.rc_context(STYLE)
def search_history(facts: StudyFacts) -> str:
    """Draw what each trial reached, in the order of the trials, and the best so far."""
    figure, axes = _figure(3.3)
    ended = sorted((record for record in facts.records if record.curve), key=lambda record: record.number)
    complete = [record for record in ended if record.objective is not None]
    pruned = [record for record in ended if record.state is TrialState.PRUNED]
    axes.plot(*_points(pruned), "o", mfc="white", color=PRUNED, markersize=5, label="pruned: last value")
    axes.plot(*_points(complete), "o", color=COMPLETE, markersize=6, label="complete")
    numbers, values = _points(complete)
    axes.step(numbers, list(accumulate(values, max)), where="post", color=BEST, linewidth=1.4, label="best so far")
    _mark(axes, facts)
    axes.set(xlabel="trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, [_value(record) for record in ended])
    label = f"Validation accuracy of {len(complete)} complete and {len(pruned)} pruned trials, in their order."
    return _svg(figure, label)


@mpl.rc_context(STYLE)
def learning_curves(facts: StudyFacts) -> str:
    """Draw the validation accuracy of every trial after each epoch; best and baseline stand out."""
    figure, axes = _figure(3.3)
    drawn = [record for record in facts.records if record.curve]
    special = {model.trial: style for model, style in _special(facts)}
    ordinary = [record for record in drawn if record.number not in special]
    complete = [record for record in ordinary if record.objective is not None]
    others = [record for record in ordinary if record.objective is None]
    rasterized = len(drawn) > MOST_LINES
    kinds = [("pruned or unfinished", others, OTHERS_STYLE), ("complete", complete, COMPLETE_STYLE)]
    for _, records, style in kinds:
        _faint(axes, records, style, rasterized)
    for record in sorted(drawn, key=lambda record: record.objective is not None):
        if record.number in special:
            marker = "o" if len(record.curve) == 1 else None
            epochs, values = list(record.curve), list(record.curve.values())
            axes.plot(epochs, values, marker=marker, markersize=4, **special[record.number])
    for name, records, style in reversed(kinds):
        if records:
            axes.plot([], [], label=name, **style)
    axes.set(xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, [value for record in drawn for value in record.curve.values()])
    return _svg(figure, f"Learning curves of {len(drawn)} trials: validation accuracy after each epoch.")


@mpl.rc_context(STYLE)
def recall_by_class(best: ModelFacts, baseline: ModelFacts) -> str:
    """Draw the recall of each class for the best model and the baseline, joined by a line."""
    names = sorted(best.classes, key=lambda name: best.recall[name])
    places = range(len(names))
    before, after = ([model.recall[name] for name in names] for model in (baseline, best))
    figure, axes = _figure(0.9 + 0.29 * len(names))
    axes.hlines(places, before, after, color=GRID, linewidth=3)
    axes.plot(before, places, "s", color=BASELINE, markersize=6, label="baseline")
    axes.plot(after, places, "o", color=BEST, markersize=7, label="best")
    axes.set_yticks(places, [_cut(name) for name in names])
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="recall on validation images")
    axes.xaxis.set_major_formatter(PERCENT)
    _legend(axes)
    return _svg(figure, "Recall of each class, best model and baseline side by side; the table has the figures.")


@mpl.rc_context(STYLE)
def finalists(finals: Finals, facts: StudyFacts) -> str:
    """Draw each finalist's repeats, their mean with its 95 % interval, and the score that made it a finalist."""
    rows = [finalist for finalist in reversed(finals.finalists) if finalist.objectives]
    figure, axes = _figure(1.2 + 0.5 * len(rows))
    for place, finalist in enumerate(rows):
        wins = finalist.trial == finals.winner
        color = BEST if wins else OTHER
        if finalist.interval is not None:
            axes.plot(finalist.interval, (place, place), color=color, linewidth=2, solid_capstyle="butt")
        axes.plot(finalist.objectives, [place] * len(finalist.objectives), "o", color=color, ms=5, alpha=0.55)
        axes.plot([mean(finalist.objectives)], [place], "D", color=color, markersize=8)
        record = facts.record(finalist.trial)
        if record is not None and record.objective is not None:
            axes.plot([record.objective], [place], "o", mfc="none", color=BASELINE, ms=9, mew=1.6)
    axes.plot([], [], "o", mfc="none", color=BASELINE, ms=9, mew=1.6, label="the trial's first score")
    axes.plot([], [], "o", color=OTHER, ms=5, alpha=0.55, label="repeat")
    axes.plot([], [], "D-", color=OTHER, ms=7, label="mean, 95 % interval")
    winner = {finals.winner: "  wins"}
    axes.set_yticks(range(len(rows)), [f"trial {row.trial:03d}{winner.get(row.trial, '')}" for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="validation accuracy")
    axes.xaxis.set_major_formatter(PERCENT)
    _legend(axes)
    return _svg(figure, f"Validation accuracy of the repeats of {len(rows)} finalists, with mean and interval.")


@mpl.rc_context(STYLE)
def importances(shares: Mapping[str, float]) -> str:
    """Draw how much of the objective's variation each hyperparameter explains."""
    ranked = sorted(shares.items(), key=lambda item: item[1])
    figure, axes = _figure(0.7 + 0.32 * len(ranked))
    bars = axes.barh([_cut(name.replace("_", " ")) for name, _ in ranked], [share for _, share in ranked], color=BEST)
    axes.bar_label(bars, [f"{share:.0%}".replace("%", " %") for _, share in ranked], padding=4)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(PERCENT)
    listed = ", ".join(f"{name} {share:.0%}" for name, share in reversed(ranked))
    return _svg(figure, f"Importance of each hyperparameter: {listed}.")


@mpl.rc_context(STYLE)
def pruned_at(ended_at: Mapping[int, int], most_epochs: int) -> str:
    """Draw how many trials were pruned after which epoch."""
    figure, axes = _figure(2.5)
    bars = axes.bar(list(ended_at), list(ended_at.values()), color=COMPLETE, width=0.8)
    axes.bar_label(bars, padding=2)
    axes.set(xlabel="epoch after which the trial ended", ylabel="pruned trials", xlim=(0.3, most_epochs + 0.7))
    axes.margins(y=0.15)
    axes.grid(visible=False, axis="x")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    listed = ", ".join(f"{count} after epoch {epoch}" for epoch, count in ended_at.items())
    return _svg(figure, f"Pruned trials by their last epoch: {listed}.")


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


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _points(records: Sequence[TrialRecord]) -> tuple[list[int], list[float]]:
    return [record.number for record in records], [_value(record) for record in records]


def _value(record: TrialRecord) -> float:
    return record.curve[max(record.curve)] if record.objective is None else record.objective


def _special(facts: StudyFacts) -> list[tuple[ModelFacts, dict[str, Any]]]:
    """Say which trials stand out and how; the best one's style wins where the baseline is the best."""
    found = []
    if facts.baseline is not None:
        found.append((facts.baseline, {"color": BASELINE, "linewidth": 2, "linestyle": "--", "label": "baseline"}))
    if facts.best is not None:
        label = f"best (trial {facts.best.trial:03d})"
        found.append((facts.best, {"color": BEST, "linewidth": 2.4, "label": label}))
    return found


def _mark(axes: Axes, facts: StudyFacts) -> None:
    for model, style in _special(facts):
        record = facts.record(model.trial)
        if record is not None and record.objective is not None:
            color, label = style["color"], style["label"]
            marker = "o" if color == BEST else "s"
            axes.plot([record.number], [record.objective], marker, color=color, markersize=9, label=label)


def _faint(axes: Axes, records: Sequence[TrialRecord], style: dict[str, Any], rasterized: bool) -> None:
    """Draw the curves of ordinary trials, all in one: ten thousand single lines take Matplotlib many seconds."""
    curves = [list(record.curve.items()) for record in records]
    axes.add_collection(LineCollection(curves, rasterized=rasterized, **style))
    dots = [point for curve in curves if len(curve) == 1 for point in curve]
    epochs, values = zip(*dots, strict=True) if dots else ((), ())
    axes.plot(epochs, values, "o", markersize=4, rasterized=rasterized, **style)


def _finish(axes: Axes, values: Sequence[float]) -> None:
    """Scale to where most values are: one diverged trial must not press the others together."""
    axes.set_ylabel("validation accuracy")
    axes.yaxis.set_major_formatter(PERCENT)
    if values:
        low, high = float(np.quantile(values, 0.05)), max(values)
        margin = 0.06 * (high - low) or 0.01
        axes.set_ylim(low - margin, high + margin)
    _legend(axes)


def _legend(axes: Axes) -> None:
    axes.figure.legend(loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1.4, fontsize=9.5)


def _svg(figure: Figure, label: str) -> str:
    """Write a figure as an element of a page, with `label` for those who cannot see it."""
    buffer = StringIO()
    # Names within one figure must not meet those of another on the same page.
    with mpl.rc_context({"svg.hashsalt": label}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    drawing = buffer.getvalue().partition("<svg")[2]
    drawing = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawing, count=2)
    # Matplotlib numbers its groups anew in every figure, and nothing refers to them.
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    return f'<svg role="img" aria-label="{html.escape(label)}"{drawing}'
