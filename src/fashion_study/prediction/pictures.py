"""Pictures of a user: PNG or JPEG files, turned into the images a model was trained on."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fashion_study.data.dataset import ImageShape
from fashion_study.errors import BadInputError, DataError

# What a folder is searched for, and the only decoders that ever see a file of a user.
SUFFIXES = (".jpeg", ".jpg", ".png")
FORMATS = ("JPEG", "PNG")
# An edge is trimmed while it is within this share of the greatest possible distance from the background's colour.
CLOSENESS = 0.05
# The background is looked for in the corners, each this share of the picture's sides.
CORNER = 0.02
# A larger picture is reduced to about this side first: enough to find edges in.
SEARCHED_SIDE = 896
WHITE = 255.0


class PictureError(DataError):
    """Refuse a picture that cannot be read, or that shows nothing."""


def find_pictures(given: Iterable[Path]) -> list[Path]:
    """Return the files given, and in the place of a folder its PNG and JPEG files by name.

    Raises:
        BadInputError: nothing is given, or a folder has no such file.
    """
    found: list[Path] = []
    for path in given:
        inside = _inside(path) if _is_folder(path) else [path]
        if not inside:
            raise BadInputError(
                f"The folder {path} has no picture. Expected files that end in {', '.join(SUFFIXES)}. Name another one."
            )
        found += inside
    if not found:
        raise BadInputError("No picture is given. Expected PNG or JPEG files, or a folder of them.")
    return found


@dataclass(frozen=True)
class Picture:
    """A decoded picture: red, green and blue from 0 to 255, (height, width, 3)."""

    path: Path
    colours: NDArray[np.float64]


def read_picture(path: Path) -> Picture:
    """Read a PNG or JPEG file.

    Raises:
        PictureError: no PNG or JPEG, damaged, beyond Pillow's limit of 89 million pixels, or of one colour only.
    """
    colours = _colours(_decoded(path))
    if np.ptp(colours, axis=(0, 1)).max() <= 0.5:
        raise _blank(path)
    return Picture(path, colours)


def fit_picture(picture: Picture, image_shape: ImageShape) -> NDArray[np.uint8]:
    """Turn a picture into an image of a data set: uint8 of its shape, and where it is grey, the object bright on black.

    Takes the steps of Xiao et al. (2017), "Fashion-MNIST", figure 1: trim the edges that look like the corners, scale
    the longest edge to 28, extend the other one around the centre, negate, turn grey. Other than there, scaling
    averages pixels where they skipped some, so nothing needs to be sharpened; the background, nearly white in their
    photographs, may have any one colour, which becomes 0; and an object that is brighter than it is not negated.
    For a data set in colour, the picture keeps its colours and is extended by the background's.

    A picture of the images' own size is neither trimmed nor scaled: the data set's own images come out unchanged, and
    the negatives of grey ones turned back.

    Raises:
        PictureError: nothing stands out from the background.
    """
    *size, channels = image_shape
    colours, background = picture.colours, _background(picture.colours)
    is_object = _distance(colours, background) > CLOSENESS
    values, level = (colours, background) if channels == 3 else (_grey(colours)[..., np.newaxis], _grey(background))
    if list(values.shape[:2]) == size and np.ptp(values) > 0.5:
        image = values if channels == 3 or values.mean() > level else WHITE - values
    elif is_object.any():
        if channels == 1:
            values, level = _ink(values, float(level)), np.zeros(1)
        image = _fitted(_trimmed(values, is_object), image_shape, level)
    else:
        raise _blank(picture.path)
    return np.rint(image).astype(np.uint8)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        # What is wrong with it is said when it is read, beside the pictures that can be.
        return False


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise BadInputError(
            f"The folder {folder} cannot be read: {error.strerror}. Expected one that may be. Change its permissions."
        ) from error


def _decoded(path: Path) -> Image.Image:
    _require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Other remarks on an odd file are not the user's to act on.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path, formats=FORMATS) as picture:
                return ImageOps.exif_transpose(picture)
    # A decoder may raise anything on hostile bytes.
    except Exception as error:
        reason = _reason(error)
        raise PictureError(f"{path} cannot be read: {reason}. Expected a PNG or JPEG picture.") from error


def _require_file(path: Path) -> None:
    try:
        is_file = path.is_file()
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error.strerror}. Expected a PNG or JPEG picture.") from error
    if not is_file:
        raise PictureError(f"{path} is no file. Expected a PNG or JPEG picture.")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is neither of both, or damaged"
    return str(error).rstrip(".") or type(error).__name__


def _colours(picture: Image.Image) -> NDArray[np.float64]:
    """Return red, green and blue from 0 to 255, (height, width, 3), with what is transparent filled in."""
    if picture.mode.startswith("I"):
        # 16 bits of grey, which Pillow would cut at 255 when it turns them into another mode.
        wide = _reduced(picture.convert("I").convert("F")) * (WHITE / 65_535)
        return np.repeat(wide[..., np.newaxis], 3, axis=2)
    if not picture.has_transparency_data:
        return _reduced(picture.convert("RGB"))
    layers = _reduced(picture.convert("RGBA"))
    colours, opacity = layers[..., :3], layers[..., 3:] / WHITE
    # A dark object is laid on white and a bright one on black: on the other one it would not be seen.
    is_dark = (opacity[..., 0] * (_grey(colours) - WHITE / 2)).sum() < 0
    return colours * opacity + (WHITE if is_dark else 0.0) * (1.0 - opacity)


def _reduced(picture: Image.Image) -> NDArray[np.float64]:
    """Average whole blocks of pixels of a large picture: single noisy ones no longer count as an edge."""
    factor = max(1, max(picture.size) // SEARCHED_SIDE)
    return np.asarray(picture.reduce(factor), dtype=np.float64)


def _background(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the colour of the corners, (3,): the median, for an object may reach into one of them."""
    rows, columns = (max(1, round(CORNER * side)) for side in colours.shape[:2])
    edges = np.concatenate([colours[:rows], colours[-rows:]])
    corners = np.concatenate([edges[:, :columns], edges[:, -columns:]])
    return np.asarray(np.median(corners.reshape(-1, 3), axis=0))


def _distance(colours: NDArray[np.float64], background: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each pixel is from the background, (height, width), as a share of black to white."""
    return np.asarray(np.linalg.norm(colours - background, axis=2) / (WHITE * 3**0.5))


def _grey(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weigh red, green and blue by ITU-R 601-2, as Pillow does; what is grey already keeps its value."""
    return np.asarray(colours @ np.array([0.299, 0.587, 0.114]))


def _ink(grey: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Stretch the side of the background's level on which the object lies, so that the background is 0 and ink 255."""
    is_bright = grey.mean() > level
    ink, most = (grey - level, WHITE - level) if is_bright else (level - grey, level)
    return np.clip(ink, 0.0, None) * (WHITE / max(most, 1.0))


def _trimmed(ink: NDArray[np.float64], is_object: NDArray[np.bool_]) -> NDArray[np.float64]:
    rows, columns = (np.flatnonzero(is_object.any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _fitted(values: NDArray[np.float64], image_shape: ImageShape, fill: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale a picture as large as the image allows, and put it at the centre."""
    (rows, columns), (height, width) = values.shape[:2], image_shape[:2]
    if rows * width >= columns * height:
        inner = height, max(1, round(columns * height / rows))
    else:
        inner = max(1, round(rows * width / columns)), width
    method = Image.Resampling.BOX if rows > height or columns > width else Image.Resampling.BICUBIC
    image = np.zeros(image_shape) + fill
    # An odd row or column goes to the top or the left, as in 19,254 of Fashion-MNIST's 60,000 training images.
    top, left = (height - inner[0] + 1) // 2, (width - inner[1] + 1) // 2
    for channel in range(image_shape[2]):
        scaled = Image.fromarray(values[..., channel].astype(np.float32)).resize(inner[::-1], method)
        image[top : top + inner[0], left : left + inner[1], channel] = np.clip(np.asarray(scaled), 0.0, WHITE)
    return image


def _blank(path: Path) -> PictureError:
    return PictureError(
        f"{path} shows nothing: it has one colour only. Expected a picture of one object on a plain background."
    )
