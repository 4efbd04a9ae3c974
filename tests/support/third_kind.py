"""A third kind of data set: blocks of three colours on 32 x 40 pixels, made from a seed.

Run as a module it is a worker process that knows the kind, as `register` makes the tests' own process know it.
"""

from pathlib import Path

import numpy as np
import pytest

from fashion_study.data import catalog
from fashion_study.data.dataset import DatasetKind, Split
from fashion_study.trial import DataSource
from fashion_study.worker import process

HEIGHT, WIDTH = 32, 40
CLASSES = {"red block": (220, 40, 40), "green block": (40, 200, 60), "blue block": (50, 60, 220)}
TRAINING_IMAGES, POOL, HOLDOUT = 150, 200, 240


def blocks(count: int, seed: int, *, wrong_labels: bool) -> Split:
    """Make images; of those with `wrong_labels` one in ten has a wrong one, so that no model is free of mistakes."""
    rng = np.random.RandomState(seed)
    images = rng.randint(0, 60, (count, HEIGHT, WIDTH, 3)).astype(np.uint8)
    labels = np.arange(count, dtype=np.int64) % len(CLASSES)
    for image, label in zip(images, labels, strict=True):
        top, left = rng.randint(0, HEIGHT - 16), rng.randint(0, WIDTH - 16)
        image[top : top + 16, left : left + 16] = list(CLASSES.values())[label]
    return Split(images, (labels + (np.arange(count) % 10 == 0)) % len(CLASSES) if wrong_labels else labels)


def locate(_data_dir: Path | None, _may_download: bool) -> DataSource:
    """Return the source of images that are nowhere on disk."""
    return DataSource(BLOCKS.name, None, "b" * 64)


BLOCKS = DatasetKind(
    name="blocks",
    title="blocks of three colours",
    image_shape=(HEIGHT, WIDTH, 3),
    class_names=tuple(CLASSES),
    training_images=TRAINING_IMAGES,
    validation_share=4,
    locate=locate,
    read_pool=lambda _: blocks(POOL, 0, wrong_labels=True),
    read_holdout=lambda _: blocks(HOLDOUT, 1, wrong_labels=False),
)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the catalog have the kind."""
    monkeypatch.setitem(catalog.KINDS, BLOCKS.name, BLOCKS)


if __name__ == "__main__":
    catalog.KINDS[BLOCKS.name] = BLOCKS
    process.main()
