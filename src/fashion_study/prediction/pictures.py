"""Pictures of a user, turned into the images a model was trained on."""

import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fashion_study.data.dataset import ImageShape
from fashion_study.errors import BadInputError, DataError

# The only decoders that ever see a file of a user; the content decides, not the name.
FORMATS = ("JPEG", "PNG", "WebP", "AVIF", "BMP", "GIF", "TIFF")
EXPECTED = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
# The files that are taken from a folder. The last four cannot be read: each is named, instead of left out unnoticed.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"),
    *(".heic", ".heif", ".jxl", ".jp2"),
)
# Other tools' folders and files beside pictures: hidden ones, and the previews that Synology's disks keep.
SKIPPED = (".", "@eaDir")
# What else is saved under a picture's name, by how it begins.
OTHER_FORMATS = {
    "HEIC": rb"....ftyp(?:hei|hev|mif1|msf1)",
    "a camera's raw file": rb"....ftypcrx |II\*\0....CR|IIU\0|IIR[OS]|FUJIFILM",
    "a video": rb"....ftyp(?!avi)|\x1aE\xdf\xa3|RIFF....AVI ",
    "JPEG XL": rb"\xff\x0a|....JXL ",
    "JPEG 2000": rb"....jP  |\xff\x4f\xff\x51",
    "a Photoshop file": rb"8BPS",
    "an icon": rb"\x00\x00[\x01\x02]\x00|icns",
    "PPM": rb"P[1-6]\s",
    "PDF": rb"%PDF",
    "a ZIP archive": rb"PK\x03\x04",
    "a web page": rb"(?i:\s*<(?:!doctype html|html))",
    "SVG": rb"\s*<(?:svg|\?xml|!--)",
    "macOS's notes on another file": rb"\x00\x05\x16\x07",
    "a pointer of Git LFS, which git lfs pull replaces": rb"version https://git-lfs",
    "empty": rb"\Z",
}
# An edge is trimmed while its pixels are closer to the background's colour than a twentieth of black to white.
CLOSENESS = 0.05 * 255 * 3**0.5
# The background is the colour of the corners, each this share of the picture's sides.
CORNER = 0.02
# A larger picture is reduced to about this side first: enough to find edges in.
SEARCHED_SIDE = 896
WHITE = 255


class PictureError(DataError):
    """A picture that cannot be read, or that shows nothing."""


def find_pictures(given: Iterable[Path]) -> list[Path]:
    """Return the files given; a folder is replaced by the pictures in it and in its folders, sorted by path.

    Raises:
        BadInputError: nothing is given, or a folder has no picture or cannot be read.
    """
    found: list[Path] = []
    for path in given:
        # Path.is_dir would raise an error for a name that is too long: reading it reports that, for this picture alone.
        inside = _inside(path) if os.path.isdir(path) else [path]  # noqa: PTH112
        if not inside:
            raise BadInputError(
                f"The folder {path} has no picture, nor have the folders in it. Expected {EXPECTED} files. "
                "Name another one."
            )
        found += inside
    if not found:
        raise BadInputError(f"No picture is given. Expected {EXPECTED} files, or a folder of them.")
    return found


@dataclass(frozen=True)
class Picture:
    """A decoded picture, in red, green and blue."""

    path: Path
    colours: Image.Image


def read_picture(path: Path) -> Picture:
    """Read a picture, of a moving one its first frame.

    Raises:
        PictureError: another format, damaged, beyond Pillow's limit of 89 million pixels, or of one colour only.
    """
    colours = _opaque(_decoded(path))
    if colours.getcolors(maxcolors=1) is not None:
        raise _blank(path)
    return Picture(path, _reduced(colours))


def fit_picture(picture: Picture, image_shape: ImageShape) -> NDArray[np.uint8]:
    """Turn a picture into an image of a data set: uint8 of its shape, and where it is grey, the object bright on black.

    The steps are those of Xiao et al. (2017), "Fashion-MNIST", figure 1: trim the edges that look like the corners,
    scale the longest edge to 28, extend the other one around the centre, negate, turn grey. Unlike there, scaling
    averages pixels instead of skipping some, so nothing needs to be sharpened; the background, nearly white in their
    photographs, may have any one colour, which becomes 0; and an object that is brighter than it is not negated.
    For a data set in colour, the picture keeps its colours and is extended by the background's.

    A picture of the images' own size is neither trimmed nor scaled: the data set's own images come out unchanged, and
    the negatives of grey ones turned back.

    Raises:
        PictureError: nothing stands out from the background.
    """
    height, width, channels = image_shape
    is_grey = channels == 1
    image = picture.colours.convert("L") if is_grey else picture.colours
    background = _background(image)
    is_dark = is_grey and np.asarray(image).mean() <= background[0]
    if image.size == (width, height):
        image = ImageOps.invert(image) if is_dark else image
    elif box := _object_box(picture.colours):
        if is_grey:
            image, background = _stretched(image, background[0], is_dark), (0,)
        image = _fitted(image.crop(box), (width, height), background)
    else:
        raise _blank(picture.path)
    return np.asarray(image).reshape(image_shape)


def _inside(folder: Path) -> list[Path]:
    found, walked = [], set()
    for parent, folders, files in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        walked.add(realpath(parent))
        # A link may lead back to a folder above it.
        folders[:] = [name for name in folders if _is_shown(name) and realpath(Path(parent, name)) not in walked]
        found += [Path(parent, name) for name in files if _is_shown(name) and name.lower().endswith(SUFFIXES)]
    return sorted(found)


def _is_shown(name: str) -> bool:
    return not name.startswith(SKIPPED)


def _refuse_folder(error: OSError) -> None:
    raise BadInputError(
        f"The folder {error.filename} cannot be read: {error.strerror}. "
        "Expected one that may be. Change its permissions."
    ) from error


def _decoded(path: Path) -> Image.Image:
    try:
        if not path.is_file():
            raise PictureError(f"{path} is no file. Expected a picture: {EXPECTED}.")
        with path.open("rb") as file:
            beginning = file.read(512)
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error.strerror}. Expected a picture: {EXPECTED}.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Other remarks on an odd file are not the user's to act on.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path, formats=FORMATS) as picture:
                return ImageOps.exif_transpose(picture)
    # A decoder may raise anything on hostile bytes.
    except Exception as error:
        raise PictureError(
            f"{path} cannot be read: {_reason(beginning, error)}. Expected a picture: {EXPECTED}. "
            "Save it anew as one of these."
        ) from error


def _reason(beginning: bytes, error: Exception) -> str:
    for name, pattern in OTHER_FORMATS.items():
        if re.match(pattern, beginning, re.DOTALL):
            return f"it is {name}"
    if isinstance(error, UnidentifiedImageError):
        return "it is none of the formats that are read, or damaged"
    return str(error).rstrip(".") or type(error).__name__


def _opaque(picture: Image.Image) -> Image.Image:
    """Return red, green and blue, with the transparent parts filled in."""
    if picture.mode.startswith("I"):
        # 16 bits of grey, which Pillow would cut at 255 when it turns them into another mode.
        return picture.convert("I").convert("F").point(lambda level: level * (1 / 256)).convert("RGB")
    if picture.mode == "F" and np.asarray(picture).max() <= 1:
        # Numbers from 0 to 1, as programs save them, which Pillow would round.
        return picture.point(lambda level: level * WHITE).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layers = _reduced(picture.convert("RGBA"))
    grey, opacity = (np.asarray(each, dtype=float) for each in (layers.convert("L"), layers.getchannel("A")))
    # A dark object needs a white background and a bright one a black one: otherwise it could not be seen.
    is_dark = (opacity * (grey - WHITE / 2)).sum() < 0
    background = Image.new("RGBA", layers.size, "white" if is_dark else "black")
    return Image.alpha_composite(background, layers).convert("RGB")


def _reduced(picture: Image.Image) -> Image.Image:
    """Average whole blocks of pixels of a large picture: a single noisy one no longer counts as an edge."""
    return picture.reduce(max(1, max(picture.size) // SEARCHED_SIDE))


def _background(picture: Image.Image) -> tuple[int, ...]:
    """Return the colour of the corners: the median, for an object may reach into one of them."""
    pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    rows, columns = (max(1, round(CORNER * side)) for side in pixels.shape[:2])
    corners = pixels[np.ix_(np.r_[:rows, -rows:0], np.r_[:columns, -columns:0])]
    return tuple(round(level) for level in np.median(corners, axis=(0, 1)))


def _object_box(colours: Image.Image) -> tuple[int, int, int, int] | None:
    """Return the box around all that stands out from the background, None where nothing does."""
    distance = np.linalg.norm(np.asarray(colours, dtype=float) - _background(colours), axis=2)
    return Image.fromarray(distance > CLOSENESS).getbbox()


def _stretched(grey: Image.Image, background: int, is_dark: bool) -> Image.Image:
    """Stretch the object's side of the background's level, so that the background is 0 and ink 255."""
    most = background if is_dark else background - WHITE
    return grey.point([round(min(max(0.0, (background - level) * WHITE / (most or 1)), WHITE)) for level in range(256)])


def _fitted(image: Image.Image, size: tuple[int, int], background: tuple[int, ...]) -> Image.Image:
    """Scale an image until it touches two edges of `size` (width, height), and put it at the centre."""
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    scaled = image.resize(inner, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    fitted = Image.new(image.mode, size, background)
    # An odd row or column goes to the top or the left, as in 19,254 of Fashion-MNIST's 60,000 training images.
    fitted.paste(scaled, ((size[0] - inner[0] + 1) // 2, (size[1] - inner[1] + 1) // 2))
    return fitted


def _blank(path: Path) -> PictureError:
    return PictureError(
        f"{path} shows nothing: it has one colour only. Expected a picture of one object on a plain background."
    )
