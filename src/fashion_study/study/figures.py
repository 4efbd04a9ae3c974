"""The figures of a whole study: its MLflow run has them as PNG, its report has some of them as SVG."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import accumulate
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import optuna
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fashion_study.store.trials import PAUSED_AT, TrialRecord, TrialStorage
from fashion_study.trial import BASELINE_NUMBER, TrialState

# Importances compare trials with each other; with fewer there is nothing to compare.
FEWEST_FOR_IMPORTANCES = 4
# Colours that people tell apart who see no red or no green (after Okabe and Ito), dark enough for text on white.
BEST, BASELINE, COMPLETE, PRUNED, OTHER = "#0067a8", "#b84300", "#6d9fc0", "#9aa5b1", "#5d6b7a"
INK, TICKS, GRID = "#1c2733", "#4a5563", "#e3e7eb"
# In inches of 72 points: as wide as a phone is in pixels, so that text in the report has its nominal size there.
WIDTH = 5.1
DPI = 200
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g} %")
# With more faint curves than these, a bitmap within an SVG is smaller than its lines.
MOST_LINES = 200
# Optuna's figures of all hyperparameters have an axis for each.
MOST_AXES = 8
# A longer name beside a figure leaves no room for the figure.
LONGEST_NAME = 30
COMPLETE_STYLE: dict[str, Any] = {"color": COMPLETE, "linewidth": 1.2, "alpha": 0.9}
OTHERS_STYLE: dict[str, Any] = {"color": PRUNED, "linewidth": 1, "alpha": 0.8}
# After Matplotlib's own style: a matplotlibrc or a notebook may have set another.
STYLE: list[str | dict[str, Any]] = [
    "default",
    {
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
    },
]


def study_figures(trial_storage: TrialStorage) -> Iterator[tuple[str, Figure]]:
    """Yield (name, figure) for every figure that the study has enough trials for."""
    records, best = trial_storage.records(), trial_storage.best()
    number = None if best is None else best.number
    # Matplotlib reads the style when it creates a figure and, for the ticks, when it saves it.
    with mpl.style.context(STYLE):
        if any(record.curve for record in records):
            yield "learning_curves", learning_curves(records, number)
        if best is not None:
            yield "optimization_history", optimization_history(records, number)
        shares = importances(trial_storage)
        if shares:
            yield "parameter_importances", parameter_importances(shares)
    with mpl.style.context("default"):
        yield from _figures_by_optuna(trial_storage.study, _shown_parameters(records, shares))


@mpl.style.context(STYLE)
def optimization_history(records: Sequence[TrialRecord], best: int | None) -> Figure:
    """Draw the value of each trial, in the order of the trials, and the best value so far; `best` stands out."""
    ended = sorted((record for record in records if record.curve), key=lambda record: record.number)
    complete = [record for record in ended if record.objective is not None]
    stopped = [record for record in ended if record.state in (TrialState.PRUNED, TrialState.PAUSED)]
    how = " and ".join(sorted({record.state.value for record in stopped})) or "pruned"
    counts = f"{len(complete)} complete and {len(stopped)} {how} trials"
    figure, axes = new_figure(3.3, f"Validation accuracy of {counts}, in their order.")
    axes.plot(*_points(stopped), "o", mfc="white", color=PRUNED, markersize=5, label=f"{how}: last value")
    axes.plot(*_points(complete), "o", color=COMPLETE, markersize=6, label="complete")
    numbers, values = _points(complete)
    axes.step(numbers, list(accumulate(values, max)), where="post", color=BEST, linewidth=1.4, label="best so far")
    for number, style in _highlights(records, best).items():
        marker, points = "o" if style["color"] == BEST else "s", [each for each in complete if each.number == number]
        axes.plot(*_points(points), marker, color=style["color"], markersize=9, label=style["label"])
    axes.set(xlabel="trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    scale_to_most(axes, [record.value or 0.0 for record in ended])
    return figure


@mpl.style.context(STYLE)
def learning_curves(records: Sequence[TrialRecord], best: int | None) -> Figure:
    """Draw the validation accuracy of every trial after each epoch; `best` and the baseline stand out."""
    drawn = [record for record in records if record.curve]
    text = f"Learning curves of {len(drawn)} trials: validation accuracy after each epoch."
    figure, axes = new_figure(3.3, text)
    highlights = _highlights(records, best)
    ordinary = [record for record in drawn if record.number not in highlights]
    complete = [record for record in ordinary if record.objective is not None]
    others = [record for record in ordinary if record.objective is None]
    kinds = [("stopped or unfinished", others, OTHERS_STYLE), ("complete", complete, COMPLETE_STYLE)]
    for _, faint, style in kinds:
        _draw_faint(axes, faint, style, rasterized=len(drawn) > MOST_LINES)
    for record in (record for number in highlights for record in drawn if record.number == number):
        marker = "o" if len(record.curve) == 1 else None
        epochs, values = list(record.curve), list(record.curve.values())
        axes.plot(epochs, values, marker=marker, markersize=4, **highlights[record.number])
    for name, faint, style in reversed(kinds):
        if faint:
            axes.plot([], [], label=name, **style)
    axes.set(xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    scale_to_most(axes, [value for record in drawn for value in record.curve.values()])
    return figure


@mpl.style.context(STYLE)
def trial_lengths(records: Sequence[TrialRecord]) -> Figure:
    """Draw how many epochs each trial was trained for, and how it ended or that it is paused.

    The part before the epoch after which its last attempt went on is pale.
    """
    drawn = [record for record in records if record.curve]
    kinds = {
        "complete": ([record for record in drawn if record.state is TrialState.COMPLETE], "o", BEST),
        "paused": ([record for record in drawn if record.state is TrialState.PAUSED], "s", BASELINE),
        "pruned or failed": ([r for r in drawn if r.state in (TrialState.PRUNED, TrialState.FAILED)], "x", OTHER),
        "unfinished": ([r for r in drawn if r.state in (TrialState.RUNNING, TrialState.WAITING)], "^", PRUNED),
    }
    counts = ", ".join(f"{len(those)} {name}" for name, (those, _, _) in kinds.items() if those)
    went_on = sum(record.resumes > 0 for record in drawn)
    figure, axes = new_figure(2.8, f"Epochs of each trial, in their order: {counts}; {went_on} went on after a stop.")
    width, is_bitmap = min(4.0, 240 / max(1, len(drawn))), len(drawn) > MOST_LINES
    for name, (those, marker, color) in kinds.items():
        numbers, ends = [record.number for record in those], [record.reached for record in those]
        starts = [max(record.resumes, record.inherited_epochs) for record in those]
        style: dict[str, Any] = {"colors": color, "linewidths": width, "rasterized": is_bitmap}
        axes.vlines(numbers, [record.inherited_epochs for record in those], starts, alpha=0.35, **style)
        axes.vlines(numbers, starts, ends, **style)
        face = "white" if name == "paused" else color
        if those:
            axes.plot(numbers, ends, marker, color=color, mfc=face, markersize=5, rasterized=is_bitmap, label=name)
    axes.set(xlabel="trial", ylabel="epochs")
    axes.set_ylim(bottom=0)
    axes.grid(visible=False, axis="x")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    legend_above(axes)
    return figure


@mpl.style.context(STYLE)
def parameter_importances(shares: Mapping[str, float]) -> Figure:
    """Draw the share of the objective's variation that each hyperparameter explains."""
    ranked = sorted(shares.items(), key=lambda item: item[1])
    listed = ", ".join(f"{name} {share:.0%}" for name, share in reversed(ranked))
    figure, axes = new_figure(0.7 + 0.32 * len(ranked), f"Importance of each hyperparameter: {listed}.")
    names = [shortened(name.replace("_", " ")) for name, _ in ranked]
    bars = axes.barh(names, [share for _, share in ranked], color=BEST)
    axes.bar_label(bars, [f"{share:.0%}".replace("%", " %") for _, share in ranked], padding=4)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(PERCENT)
    return figure


def importances(trial_storage: TrialStorage) -> dict[str, float]:
    """Return each hyperparameter's share of the objective's variation, empty where the trials do not show it."""
    objectives = [record.objective for record in trial_storage.records() if record.objective is not None]
    if len(objectives) < FEWEST_FOR_IMPORTANCES or len(set(objectives)) == 1:
        return {}
    with warnings.catch_warnings():
        # Optuna calls its own default evaluator experimental.
        warnings.simplefilter("ignore")
        return optuna.importance.get_param_importances(trial_storage.study)


def new_figure(height: float, text: str) -> tuple[Figure, Axes]:
    """Return a figure of the usual width with its axes: `height` in inches, `text` for readers who cannot see it."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.set_label(text)
    return figure, figure.subplots()


def scale_to_most(axes: Axes, values: Sequence[float]) -> None:
    """Scale to where most values are: one diverged trial must not press the others together."""
    axes.set_ylabel("validation accuracy")
    axes.yaxis.set_major_formatter(PERCENT)
    if values:
        low, high = float(np.quantile(values, 0.05)), max(values)
        margin = 0.06 * (high - low) or 0.01
        axes.set_ylim(low - margin, high + margin)
    legend_above(axes)


def legend_above(axes: Axes) -> None:
    """Put the legend above the axes."""
    axes.figure.legend(loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1.4, fontsize=9.5)


def shortened(name: str) -> str:
    """Return a name that leaves room for the figure beside it."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _shown_parameters(records: Sequence[TrialRecord], shares: Mapping[str, float]) -> list[str]:
    """Return the hyperparameters that a figure has an axis for: all, or of very many the most important that vary."""
    names = list(records[0].params) if records else []
    if len(names) <= MOST_AXES:
        return names
    values = {name: {record.params.get(name) for record in records if record.objective is not None} for name in names}
    varied = [name for name in names if len(values[name]) > 1]
    return sorted(varied, key=lambda name: -shares.get(name, 0.0))[:MOST_AXES]


def _figures_by_optuna(study: optuna.Study, names: list[str]) -> Iterator[tuple[str, Figure]]:
    from optuna.visualization import matplotlib as plots

    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    complete = states.count(optuna.trial.TrialState.COMPLETE)
    enough: dict[str, tuple[bool, Callable[[], object]]] = {
        "timeline": (any(state.is_finished() for state in states), lambda: plots.plot_timeline(_as_trained(study))),
        "slices": (complete > 0 and bool(names), lambda: plots.plot_slice(study, names)),
        "parallel_coordinates": (complete > 1 and bool(names), lambda: plots.plot_parallel_coordinate(study, names)),
    }
    for name, (is_enough, plot) in enough.items():
        if not is_enough:
            continue
        with warnings.catch_warnings():
            # Optuna calls its Matplotlib figures experimental.
            warnings.simplefilter("ignore")
            axes = np.atleast_1d(np.asarray(plot(), dtype=object))
        figure: Figure = axes.flat[0].figure
        width, height = figure.get_size_inches()
        figure.set_size_inches(max(width, 9), max(height, 5))
        yield name, figure
        plt.close(figure)


def _as_trained(study: optuna.Study) -> optuna.Study:
    """Copy a study; each finished trial begins when a worker took it up, not when it was proposed.

    One that was paused when it was ended had been trained before, nobody knows when: it has an end alone.
    """
    copy = optuna.create_study(direction="maximize")
    for trial in study.get_trials():
        if trial.datetime_complete is not None:
            seconds = 0.0 if trial.user_attrs.get(PAUSED_AT) else trial.user_attrs.get("seconds", 0.0)
            trial.datetime_start = trial.datetime_complete - timedelta(seconds=seconds)
        copy.add_trial(trial)
    return copy


def _points(records: Sequence[TrialRecord]) -> tuple[list[int], list[float]]:
    return [record.number for record in records], [record.value or 0.0 for record in records]


def _highlights(records: Sequence[TrialRecord], best: int | None) -> dict[int, dict[str, Any]]:
    """Return the styles of the trials that stand out, the best one last; a baseline that is the best is the best."""
    baseline = {"color": BASELINE, "linewidth": 2, "linestyle": "--", "label": "baseline"}
    is_complete = any(record.number == BASELINE_NUMBER and record.objective is not None for record in records)
    found: dict[int, dict[str, Any]] = {BASELINE_NUMBER: baseline} if is_complete else {}
    if best is not None:
        found[best] = {"color": BEST, "linewidth": 2.4, "label": f"best (trial {best:03d})"}
    return found


def _draw_faint(axes: Axes, records: Sequence[TrialRecord], style: dict[str, Any], rasterized: bool) -> None:
    """Draw the curves of ordinary trials as one collection: ten thousand single lines take Matplotlib many seconds."""
    curves = [list(record.curve.items()) for record in records]
    axes.add_collection(LineCollection(curves, rasterized=rasterized, **style))
    dots = [point for curve in curves if len(curve) == 1 for point in curve]
    epochs, values = zip(*dots, strict=True) if dots else ((), ())
    axes.plot(epochs, values, "o", markersize=4, rasterized=rasterized, **style)
