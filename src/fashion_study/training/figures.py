"""The figures of an evaluation, made without pyplot, which would keep every figure alive."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

# The images of a side of the grid; the side of a tile and the height of its caption, in sides of an image.
SIDE, TILE, CAPTION = 5, 10 / 7, 5 / 14
RIGHT, WRONG = "#1b6e3c", "#b3261e"
# Matplotlib's own style, whatever a matplotlibrc has; a dollar sign in a class name is not the beginning of a formula.
PLAIN: list[str | dict[str, Any]] = ["default", {"text.parse_math": False}]


@mpl.style.context(PLAIN)
def confusion_matrix_figure(confusion: npt.NDArray[np.int64], class_names: Sequence[str], title: str) -> Figure:
    """Draw counts as a heatmap: rows are the true classes, columns the predicted ones."""
    figure = Figure(figsize=(8.6, 7.6), layout="constrained")
    axes = figure.subplots()
    # The square root makes the mistakes visible, which a linear scale hides beside the diagonal.
    scale = PowerNorm(0.5, vmin=0, vmax=confusion.sum(axis=1).max())
    ConfusionMatrixDisplay(confusion, display_labels=class_names).plot(
        ax=axes, cmap="Blues", values_format="d", colorbar=False, im_kw={"norm": scale}
    )
    axes.set(title=title, xlabel="predicted", ylabel="true")
    for label in axes.get_xticklabels():
        label.set(rotation=40, horizontalalignment="right", rotation_mode="anchor")
    return figure


@mpl.style.context(PLAIN)
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
    `images` has the shape (n, height, width, 1 or 3), `probabilities` (n, classes). Grey images are drawn dark on
    light.
    """
    chosen = np.random.default_rng(seed).permutation(len(labels))[: SIDE * SIDE]
    wrong = int((predicted[chosen] != labels[chosen]).sum())
    height, width, channels = images.shape[1:]
    tile, caption = (round(share * max(height, width)) for share in (TILE, CAPTION))
    # One picture for all images: 25 axes take four times as long to draw.
    canvas = np.full((SIDE * tile, SIDE * tile, channels), 0 if channels == 1 else 255, dtype=np.uint8)
    figure = Figure(figsize=(9.5, 9.9))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.95))
    axes.set_title(f"{len(chosen)} images drawn at random: {len(chosen) - wrong} right, {wrong} wrong")
    axes.set_axis_off()
    for number, index in enumerate(chosen):
        top, left = number // SIDE * tile + caption, number % SIDE * tile + (tile - width) // 2
        canvas[top : top + height, left : left + width] = images[index]
        true, guess = labels[index], predicted[index]
        axes.text(
            left + width / 2,
            top - caption / 10,
            f"true: {class_names[true]}\npredicted: {class_names[guess]} {probabilities[index, guess]:.0%}",
            fontsize=8,
            color=RIGHT if true == guess else WRONG,
            fontweight="normal" if true == guess else "bold",
            horizontalalignment="center",
            verticalalignment="bottom",
        )
    axes.imshow(canvas, cmap="gray_r", vmin=0, vmax=255)
    return figure
