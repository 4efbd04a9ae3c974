"""The confusion matrix as a table of a page, which a phone can scroll and a reader can copy from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fashion_study.report.facts import ModelFacts

MINUS = "\N{MINUS SIGN}"
Colour = tuple[int, int, int]
BLUE: Colour = (0, 82, 136)
ORANGE: Colour = (184, 67, 0)


@dataclass(frozen=True)
class Cell:
    """Show one number on a background; `colour` is the text's, whichever of black and white is easier to read."""

    text: str
    background: str
    colour: str
    is_right: bool


def confusion_cells(model: ModelFacts) -> list[tuple[str, list[Cell]]]:
    """Show counts, true classes as rows; the more images, the darker."""
    # The square root lifts the mistakes, which a linear scale drowns beside the diagonal.
    strength = np.sqrt(model.confusion / max(1, model.confusion.sum(axis=1).max()))
    return [
        (
            name,
            [
                _cell(str(count), share, BLUE, row == column)
                for column, (count, share) in enumerate(zip(counts, shares, strict=True))
            ],
        )
        for row, (name, counts, shares) in enumerate(
            zip(model.classes, model.confusion.tolist(), strength.tolist(), strict=True)
        )
    ]


def change_cells(best: ModelFacts, reference: ModelFacts) -> list[tuple[str, list[Cell]]]:
    """Show best minus reference: blue is better (more right, fewer wrong), orange worse."""
    change = best.confusion - reference.confusion
    strength = np.sqrt(np.abs(change) / max(1, np.abs(change).max()))
    better = np.where(np.eye(len(change), dtype=bool), change > 0, change < 0)
    return [
        (
            name,
            [
                _cell(
                    f"{change[row, column]:+d}".replace("-", MINUS) if change[row, column] else "·",
                    0.85 * float(strength[row, column]),
                    BLUE if better[row, column] else ORANGE,
                    row == column,
                )
                for column in range(len(change))
            ],
        )
        for row, name in enumerate(best.classes)
    ]


def _cell(text: str, strength: float, colour: Colour, is_right: bool) -> Cell:
    mixed = tuple(round(255 + (channel - 255) * strength) for channel in colour)
    return Cell(text, "#{:02x}{:02x}{:02x}".format(*mixed), _readable_on(mixed), is_right)


def _readable_on(background: Sequence[int]) -> str:
    """Choose black or white by WCAG's relative luminance; their contrast is equal at 0.179."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (b / 255 for b in background)]
    luminance = sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000" if luminance > 0.179 else "#fff"
