"""The figures of one evaluation, as objects of their own: pyplot would keep every figure alive."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

# The grid, in images a side; a tile, its caption and its margin, in pixels of the data.
SIDE, CAPTION, MARGIN = 5, 10, 6
RIGHT, WRONG = "#1b6e3c", "#b3261e"
# A dollar sign in a name is a dollar sign, and no formula.
PLAIN: dict[RcKeyType, Any] = {"text.parse_math": False}


@mpl.rc_context(PLAIN)
def confusion_matrix_figure(confusion: npt.NDArray[np.int64], class_names: Sequence[str], title: str) -> Figure:
    """Draw counts as a heatmap: rows are the true classes, columns the predicted ones."""
    figure = Figure(figsize=(8.6, 7.6), layout="constrained")
    axes = figure.subplots()
    # The square root lifts the mistakes, which a linear scale drowns beside the diagonal.
    sns.heatmap(
        confusion,
        annot=True,
        fmt="d",
        cmap="Blues",
        norm=PowerNorm(0.5, vmin=0, vmax=confusion.sum(axis=1).max()),
        cbar=False,
        square=True,
        linewidths=0.5,
        xticklabels=list(class_names),
        yticklabels=list(class_names),
        ax=axes,
    )
    axes.set(title=title, xlabel="predicted", ylabel="true")
    axes.tick_params(axis="x", rotation=40)
    for label in axes.get_xticklabels():
        label.set(horizontalalignment="right", rotation_mode="anchor")
    axes.tick_params(axis="y", rotation=0)
    return figure


@mpl.rc_context(PLAIN)
def prediction_grid_figure(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    class_names: Sequence[str],
    seed: int,
) -> Figure:
    """Draw 25 images of a split with their true and predicted classes.

    The images are drawn evenly from the whole split, so the share of mistakes is an honest sample of it.
    `images` has the shape (n, height, width, channels), `probabilities` (n, classes).
    """
    chosen = np.random.default_rng(seed).permutation(len(labels))[: SIDE * SIDE]
    wrong = int((predicted[chosen] != labels[chosen]).sum())
    # One picture for all images: 25 axes take four times as long to draw.
    height, width, channels = images.shape[1:]
    rows, columns = height + 2 * MARGIN, width + 2 * MARGIN
    # Grey images are shown dark on light, where 0 is white.
    canvas = np.full((SIDE * rows, SIDE * columns, channels), 0 if channels == 1 else 255, dtype=np.uint8)
    figure = Figure(figsize=(9.5, 9.9))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.95))
    axes.set_title(f"{len(chosen)} images drawn at random: {len(chosen) - wrong} right, {wrong} wrong")
    axes.set_axis_off()
    for place, index in enumerate(chosen):
        top, left = place // SIDE * rows + CAPTION, place % SIDE * columns + MARGIN
        canvas[top : top + height, left : left + width] = images[index]
        true, guess = labels[index], predicted[index]
        axes.text(
            left + width / 2,
            top - 1,
            f"true: {class_names[true]}\npredicted: {class_names[guess]} {probabilities[index, guess]:.0%}",
            fontsize=8,
            color=RIGHT if true == guess else WRONG,
            fontweight="normal" if true == guess else "bold",
            horizontalalignment="center",
            verticalalignment="bottom",
        )
    axes.imshow(canvas, cmap="gray_r", vmin=0, vmax=255)
    return figure
