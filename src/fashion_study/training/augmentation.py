"""Augmentation: pictures changed at random before they train a model, on their bytes.

How a picture is changed in an epoch depends on the trial's seed, the epoch's number and the picture's own. Validation
and holdout are never changed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fashion_study.trial import Hyperparameters

# Of an erased box: its share of the picture, and how many times one side is the other, up or down.
ERASED_AREA, MOST_ASPECT = (0.02, 0.2), 3.3

# What is drawn. Their order decides what a seed trains to.
PURPOSES = ("order", "flip", "shift", "erasing", "dropout")

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Augmentation:
    """How each of the pictures is changed in an epoch.

    `flipped` are mirrored left to right. `offsets` (n, 2) are the rows and columns by which one is moved down and to
    the right, with its border repeated, up to `shift`; None where none is. `boxes` (n, 4) are top, bottom, left and
    right of what is set to zero, as shares of the sides; None where none is.
    """

    flipped: npt.NDArray[np.bool_] | None
    offsets: npt.NDArray[np.int64] | None
    boxes: npt.NDArray[np.float64] | None
    shift: int

    @classmethod
    def drawn(cls, params: Hyperparameters, images: int, seed: int, epoch: int) -> "Augmentation | None":
        """Draw how so many pictures are changed; None where the parameters ask for nothing."""
        if (params.flip, params.shift, params.erasing) == ("none", 0, 0.0):
            return None
        flipped = offsets = boxes = None
        if params.flip == "random":
            flipped = generator(seed, epoch, "flip").random(images) < 0.5
        if params.flip == "alternating":
            # Mirrored in every other epoch, from one on that is drawn (Jordan 2024, arXiv 2404.00498).
            flipped = (generator(seed, 0, "flip").random(images) < 0.5) ^ bool(epoch % 2)
        if params.shift:
            offsets = generator(seed, epoch, "shift").integers(-params.shift, params.shift + 1, (images, 2))
        if params.erasing:
            boxes = _boxes(generator(seed, epoch, "erasing"), images, params.erasing)
        return cls(flipped, offsets, boxes, params.shift)

    def apply(self, images: Images, index: npt.NDArray[np.int64]) -> Images:
        """Return the pictures with these numbers, changed; `images` (n, height, width, channels) stay as they are."""
        batch = images[index]
        height, width = batch.shape[1:3]
        if self.flipped is not None:
            batch = np.where(self.flipped[index, None, None, None], batch[:, :, ::-1], batch)
        if self.offsets is not None:
            margin = ((0, 0), (self.shift, self.shift), (self.shift, self.shift), (0, 0))
            windows = np.lib.stride_tricks.sliding_window_view(np.pad(batch, margin, "edge"), (height, width), (1, 2))
            down, right = (self.shift - self.offsets[index]).T
            batch = np.ascontiguousarray(np.moveaxis(windows[np.arange(len(batch)), down, right], 1, -1))
        if self.boxes is not None:
            top, bottom, left, right = self.boxes[index].T[..., None]
            rows, columns = (np.arange(size) + 0.5 for size in (height, width))
            in_rows = (rows >= top * height) & (rows < bottom * height)
            in_columns = (columns >= left * width) & (columns < right * width)
            batch[in_rows[:, :, None] & in_columns[:, None, :]] = 0
        return batch


def generator(seed: int, epoch: int, what: str) -> np.random.Generator:
    """Return the generator for one of the `PURPOSES` in an epoch; it depends on nothing that was drawn before.

    Philox is counter-based: of its counter's 256 bits the highest 64 have the purpose.
    """
    return np.random.Generator(np.random.Philox(key=(seed, epoch), counter=[0, 0, 0, PURPOSES.index(what)]))


def _boxes(random: np.random.Generator, images: int, share: float) -> npt.NDArray[np.float64]:
    """Draw a box of each picture, an empty one for those that are not erased (Zhong et al. 2020, arXiv 1708.04896)."""
    is_erased = random.random(images) < share
    area, aspect = random.uniform(*ERASED_AREA, images), MOST_ASPECT ** random.uniform(-1, 1, images)
    height, width = np.sqrt(area * aspect), np.sqrt(area / aspect)
    top, left = random.random(images) * (1 - height), random.random(images) * (1 - width)
    return np.stack([top, top + height * is_erased, left, left + width], axis=1)
