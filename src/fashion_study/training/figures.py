"""The figures of one evaluation. Figure objects only: pyplot would keep every figure alive in its registry."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

SIDE = 5
RIGHT, WRONG = "#1b6e3c", "#b3261e"


def confusion_matrix_figure(
    confusion: npt.NDArray[np.int64], class_names: Sequence[str], title: str
) -> Figure:
    """Draw counts as a heatmap: rows are the true classes, columns the predicted ones."""
    figure = Figure(figsize=(8.6, 7.6), layout="constrained")
    axes = figure.subplots()
    # Logarithmic, or the diagonal drowns the mistakes; one is added so that zero has a colour.
    sns.heatmap(
        confusion + 1,
        annot=confusion,
        fmt="d",
        cmap="Blues",
        norm=LogNorm(vmin=1, vmax=max(2, confusion.max() + 1)),
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
    `images` has the shape (n, 28, 28, 1), `probabilities` (n, classes).
    """
    chosen = np.random.default_rng(seed).permutation(len(labels))[: SIDE * SIDE]
    wrong = int((predicted[chosen] != labels[chosen]).sum())
    figure = Figure(figsize=(9, 11.2), layout="constrained")
    figure.suptitle(f"{len(chosen)} images drawn at random: {len(chosen) - wrong} right, {wrong} wrong")
    axes = figure.subplots(SIDE, SIDE)
    for place in axes.flat:
        place.set_axis_off()
    for place, index in zip(axes.flat, chosen, strict=False):
        place.imshow(images[index, :, :, 0], cmap="gray_r", vmin=0, vmax=255)
        true, guess = labels[index], predicted[index]
        place.set_title(
            f"true: {class_names[true]}\npredicted: {class_names[guess]} {probabilities[index, guess]:.0%}",
            fontsize=8.5,
            color=RIGHT if true == guess else WRONG,
            fontweight="normal" if true == guess else "bold",
        )
    return figure
