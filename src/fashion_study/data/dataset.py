"""The images of a study: where they lie, whether they are the official ones, which train and which validate.

The holdout is not here: `fashion_study.data.holdout` reads it, and a study never imports that.
"""

import gzip
import hashlib
import io
import logging
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fashion_study.errors import BadInputError, DataError
from fashion_study.trial import DataSource

# Where Keras takes the files from, and the SHA-256 of the official four.
BASE_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
OFFICIAL_FILES: Mapping[str, str] = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
CLASS_NAMES: Mapping[str, tuple[str, ...]] = {
    "fashion-mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "digits": tuple("0123456789"),
}
SIDE = 28
# One image of so many validates: 10,000 of 60,000; of the four fifths of the digits, a quarter.
VALIDATION_PART: Mapping[str, int] = {"fashion-mnist": 6, "digits": 4}
TRAINING_IMAGES: Mapping[str, int] = {"fashion-mnist": 50_000, "digits": 1_079}
# The same for every study, whatever its seed: runs of one experiment are compared on the same images.
SPLIT_SEED = 20_170_825
# The official files and what is in them, rounded up: more is read of nothing that says it is one of them.
MAX_PACKED, MAX_UNPACKED = 32 * 2**20, 64 * 2**20
# Seconds to connect and between two packets: `auto` must not keep a user without network waiting.
TIMEOUT = (4.0, 20.0)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Hold images, uint8 (n, 28, 28, 1) from 0 (black) to 255 (white), and labels, int64 (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class StudyData:
    """Hold what a study may see; `split_digest` identifies which images train and which validate."""

    source: DataSource
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    split_digest: str


class DownloadError(DataError):
    """Report that the official files are neither on disk nor to be had."""


def locate(dataset: Literal["auto", "fashion-mnist", "digits"], data_dir: Path | None = None) -> DataSource:
    """Find verified images in `data_dir` or FASHION_MNIST_DIR, else in Keras's cache, else by downloading.

    `auto` falls back to the embedded digits where nothing is on disk or can be downloaded, and says so.
    Raise DataError for files that are damaged, or that are missing from a folder the user has named.
    """
    if dataset == "digits":
        return _digits_source(is_fallback=False)
    named = _absolute(data_dir) if data_dir else _folder_from("FASHION_MNIST_DIR")
    if named is not None:
        return _fashion_source(_verified(named, OFFICIAL_FILES))
    cache = keras_cache()
    try:
        download(cache, BASE_URL, OFFICIAL_FILES)
    except DownloadError as error:
        if dataset == "fashion-mnist":
            raise
        _log.warning("Falling back to the embedded digits. %s", error)
        return _digits_source(is_fallback=True)
    return _fashion_source(cache)


def load_study_data(source: DataSource, limit_train: int | None = None) -> StudyData:
    """Load the training and validation images of a study, the same for every study of a data set.

    `limit_train` keeps that many training images, stratified; the validation images stay as they are.
    """
    check_limit(source, limit_train)
    pool, indices = _training_pool(source)
    validation_size = len(indices) // VALIDATION_PART[source.name]
    train, validation = _stratified(indices, pool.labels, keep=len(indices) - validation_size)
    if limit_train is not None:
        train = _limited(train, pool.labels, limit_train)
    return StudyData(
        source=source,
        class_names=CLASS_NAMES[source.name],
        train=_take(pool, train),
        validation=_take(pool, validation),
        split_digest=_digest(train.astype("<i8").tobytes(), validation.astype("<i8").tobytes()),
    )


def load_training_images(source: DataSource) -> Split:
    """Load all images that may be fitted to: training and validation together, in the files' order."""
    pool, indices = _training_pool(source)
    return _take(pool, indices)


def keras_cache() -> Path:
    """Name the folder in which Keras keeps Fashion-MNIST."""
    home = _folder_from("KERAS_HOME") or _absolute("~/.keras")
    return home / "datasets" / "fashion-mnist"


def download(folder: Path, base_url: str, files: Mapping[str, str]) -> None:
    """Fetch into `folder` those of `files` (name to SHA-256) that are missing or damaged there.

    A file gets its name only when it is complete and verified. Raise DownloadError where one cannot be had,
    DataError where one that is there is damaged and cannot be replaced.
    """
    missing_or_damaged = [name for name, digest in files.items() if _problem(folder / name, digest)]
    for name in missing_or_damaged:
        try:
            _fetch(folder, name, base_url, files[name])
        except (OSError, ValueError) as error:
            if not _problem(folder / name, files[name]):
                continue  # another process has brought it meanwhile
            damaged = (folder / name).exists()
            state = "damaged" if damaged else "missing"
            raise (DataError if damaged else DownloadError)(
                f"{folder / name}: found it {state}, and no download from {base_url} ({_reason(error)}); "
                f"expected the official file with SHA-256 {files[name]}. Go online, name a folder that has "
                "the files (--data-dir or FASHION_MNIST_DIR), or use --dataset digits."
            ) from error


def read_pair(folder: Path, images_name: str, labels_name: str, files: Mapping[str, str]) -> Split:
    """Read a file of images and one of labels (IDX, gzip), each verified against its SHA-256 in `files`."""
    images = _read_idx(folder / images_name, files[images_name], dimensions=3)
    labels = _read_idx(folder / labels_name, files[labels_name], dimensions=1)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{folder / images_name}: found images of {images.shape[1:]}, expected ({SIDE}, {SIDE}).")
    if len(images) != len(labels):
        raise DataError(f"{folder}: found {len(images)} images and {len(labels)} labels, expected as many.")
    if labels.size and labels.max() > 9:
        raise DataError(f"{folder / labels_name}: found the label {labels.max()}, expected 0 to 9.")
    return Split(images[..., np.newaxis], labels.astype(np.int64))


def enlarge(images: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Resize the 8 x 8 digits (n, 8, 8) with values 0 to 16 to (n, 28, 28, 1) with 0 to 255, bilinearly.

    Computed in whole numbers, so that every machine gets the same bytes and the data digest holds.
    """
    small = images.shape[1]
    unit = 2 * SIDE
    weights = np.zeros((SIDE, small), dtype=np.int64)
    for row in range(SIDE):
        # The centre of the row on the small grid, in units of 1 / (2 * SIDE), kept within the outer centres.
        centre = min(max((2 * row + 1) * small - SIDE, 0), unit * (small - 1))
        before, offset = divmod(centre, unit)
        weights[row, before] += unit - offset
        weights[row, min(before + 1, small - 1)] += offset
    sums = weights @ images.astype(np.int64) @ weights.T
    white = 16 * unit * unit
    return ((sums * 255 + white // 2) // white).astype(np.uint8)[..., np.newaxis]


def digits_in_use(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose the four fifths of the digits that a study may see, as sorted indices."""
    return _stratified(np.arange(len(labels)), labels, keep=len(labels) - len(labels) // 5)[0]


def _folder_from(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return _absolute(value) if value else None


def _absolute(folder: str | Path) -> Path:
    # Path.expanduser would fail for an account without a home.
    return Path(os.path.expanduser(folder)).resolve()  # noqa: PTH111


def _fashion_source(folder: Path) -> DataSource:
    digest = _digest(*(digest.encode() for digest in OFFICIAL_FILES.values()))
    return DataSource("fashion-mnist", folder, digest)


def _digits_source(*, is_fallback: bool) -> DataSource:
    digits = _all_digits()
    return DataSource("digits", None, _digest(digits.images.tobytes(), digits.labels.tobytes()), is_fallback)


def _verified(folder: Path, files: Mapping[str, str]) -> Path:
    for name, digest in files.items():
        problem = _problem(folder / name, digest)
        if problem:
            raise DataError(_unusable(folder / name, problem, digest))
    return folder


def _problem(path: Path, digest: str) -> str:
    """Say what is wrong with a file; nothing when it is the official one."""
    try:
        if not path.is_file():
            return "no regular file" if path.exists() else "no such file"
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return _reason(error)
    return "" if found == digest else f"SHA-256 {found}"


def _unusable(path: Path, found: str, digest: str) -> str:
    return (
        f"{path}: found {found}, expected the official file with SHA-256 {digest}. "
        "Replace it, or leave out --data-dir and FASHION_MNIST_DIR to have it downloaded into Keras's cache."
    )


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _fetch(folder: Path, name: str, base_url: str, digest: str) -> None:
    # Imported here: pooch is needed once in the life of a machine.
    import pooch

    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=65_536, timeout=TIMEOUT)
    pooch.retrieve(base_url + name, f"sha256:{digest}", fname=name, path=folder, downloader=downloader)


def _read_idx(path: Path, digest: str, dimensions: int) -> NDArray[np.uint8]:
    """Read unsigned bytes in the IDX format: 0, 0, 8, the number of dimensions, four bytes for each size."""
    try:
        with path.open("rb") as file:
            packed = file.read(MAX_PACKED)
    except OSError as error:
        raise DataError(_unusable(path, _reason(error), digest)) from error
    # What is parsed is what was verified, though the file may have changed since it was located.
    found = hashlib.sha256(packed).hexdigest()
    if found != digest:
        raise DataError(_unusable(path, f"SHA-256 {found}", digest))
    try:
        with gzip.open(io.BytesIO(packed)) as unpacked:
            raw = unpacked.read(MAX_UNPACKED)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: found no readable gzip ({_reason(error)}), expected an IDX file.") from error
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path}: found the header {raw[:4].hex()}, expected 000008{dimensions:02x}, sizes.")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", count=dimensions, offset=4))
    values = np.frombuffer(raw, np.uint8, offset=start)
    if values.size != np.prod(shape, dtype=object):
        raise DataError(f"{path}: found {values.size} values, expected {shape} as its header says.")
    return values.reshape(shape)


def _training_pool(source: DataSource) -> tuple[Split, NDArray[np.int64]]:
    """Load images and the indices among them that a study may see."""
    if source.directory is None:
        digits = _all_digits()
        return digits, digits_in_use(digits.labels)
    images_name, labels_name, *_ = OFFICIAL_FILES
    pool = read_pair(source.directory, images_name, labels_name, OFFICIAL_FILES)
    return pool, np.arange(len(pool.labels))


def _all_digits() -> Split:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Split(enlarge(digits.images), digits.target.astype(np.int64))


def _stratified(
    indices: NDArray[np.int64], labels: NDArray[np.int64], keep: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide indices into `keep` and the rest, each sorted and with every class in proportion."""
    from sklearn.model_selection import train_test_split

    kept, rest = train_test_split(indices, train_size=keep, random_state=SPLIT_SEED, stratify=labels[indices])
    return np.sort(kept), np.sort(rest)


def check_limit(source: DataSource, limit_train: int | None) -> None:
    """Refuse a limit that the training images of `source` cannot meet, before any of them is read."""
    fewest, most = 2 * len(CLASS_NAMES[source.name]), TRAINING_IMAGES[source.name]
    if limit_train is not None and not fewest <= limit_train <= most:
        raise BadInputError(
            f"--limit-train is {limit_train}. Expected {fewest:,} to {most:,}, the training images of {source.name}."
        )


def _limited(indices: NDArray[np.int64], labels: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    own = labels[indices]
    # Each image's place within its class, as a share of the class: the first of this order are always
    # stratified, and a smaller limit is a subset of a larger one. RandomState never changes its stream.
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(indices))
    share = np.empty(len(indices))
    for label in np.unique(own):
        members = shuffled[own[shuffled] == label]
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(indices[np.argsort(share, kind="stable")[:limit]])


def _take(pool: Split, indices: NDArray[np.int64]) -> Split:
    return Split(pool.images[indices], pool.labels[indices])


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
