"""Fashion-MNIST: 70,000 grey images of 28 x 28 pixels in four files, found or downloaded, and verified."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_study.data.dataset import DatasetKind, DownloadError, PublishedFigures, Split
from fashion_study.errors import DataError
from fashion_study.paths import expanded
from fashion_study.trial import DataSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class OfficialFile:
    """The SHA-256 of an official file as Keras serves it, and of what it unpacks to."""

    packed: str
    unpacked: str


# Where the package of Debian and Ubuntu puts the files.
PACKAGE, PACKAGE_FOLDER = "dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")
BASE_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
OFFICIAL_FILES: Mapping[str, OfficialFile] = {
    "train-images-idx3-ubyte.gz": OfficialFile(
        packed="3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        unpacked="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte.gz": OfficialFile(
        packed="a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        unpacked="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte.gz": OfficialFile(
        packed="346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        unpacked="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte.gz": OfficialFile(
        packed="67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        unpacked="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
# Stored in every study. It comes from the packed digests, and stays for files that are packed otherwise.
DATA_DIGEST = "160f17b0d74ef6a79aa5245caa529204f34bd0073a378c22956c0229f2097603"
SIDE = 28
# The largest official file has 45 MiB, unpacked: more is read of nothing that says it is one of them.
MAX_BYTES = 64 * 2**20
# Seconds to connect and between two packets: `auto` must not keep a user without network waiting.
TIMEOUT = (4.0, 20.0)


def locate(data_dir: Path | None, may_download: bool) -> DataSource:
    """Find verified files in `data_dir` or FASHION_MNIST_DIR, else in Keras's cache, in Debian's package, or online."""
    named = data_dir or os.environ.get("FASHION_MNIST_DIR")
    folder = _named_folder(expanded(named).resolve()) if named else _own_folder(may_download)
    return DataSource(FASHION_MNIST.name, folder, DATA_DIGEST)


def _named_folder(named: Path) -> Path:
    """Return the folder with the official files: `named`, or one up to two levels below, as torchvision lays them."""
    # Functions of `os` and `glob`: Path's would raise an error for a folder that may not be read.
    if os.path.isfile(named):  # noqa: PTH113
        raise DataError(f"{named} is a file. Expected the folder of the four {FASHION_MNIST.title} files. Name that.")
    if _has_official(named):
        return named
    below = (named / each for level in ("*/", "*/*/") for each in sorted(glob(level, root_dir=named)))  # noqa: PTH207
    inside = list(filter(_has_files, below))
    # MNIST's files, perhaps in a folder beside, have the same names: the digests decide.
    if official := next(filter(_has_official, inside), None):
        return official
    _verify_all(next(filter(_has_files, (named, *inside)), named))
    return named


def _own_folder(may_download: bool) -> Path:
    folder = keras_cache()
    if found := next(filter(_has_official, (folder, PACKAGE_FOLDER)), None):
        return found
    if may_download:
        download(folder, BASE_URL, OFFICIAL_FILES)
    else:
        _verify_all(folder)
    return folder


def read_pool(source: DataSource) -> Split:
    """Read the 60,000 images that may be fitted to."""
    images, labels, *_ = OFFICIAL_FILES
    return read_pair(source.directory, images, labels, OFFICIAL_FILES)


def read_holdout(source: DataSource) -> Split:
    """Read the 10,000 official test images."""
    *_, images, labels = OFFICIAL_FILES
    return read_pair(source.directory, images, labels, OFFICIAL_FILES)


def keras_cache() -> Path:
    """Return the folder in which Keras keeps Fashion-MNIST."""
    return expanded(os.environ.get("KERAS_HOME") or "~/.keras").resolve() / "datasets" / "fashion-mnist"


def download(folder: Path, base_url: str, files: Mapping[str, OfficialFile]) -> None:
    """Fetch into `folder` those of `files` that are missing or damaged there.

    A file gets its name only when it is complete and verified. Raise DownloadError where one cannot be had,
    DataError where one that is there is damaged and cannot be replaced.
    """
    for name in [name for name, official in files.items() if not _is_official(folder / name, official)]:
        # Imported here: pooch is needed once in the life of a machine.
        import pooch

        downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=65_536, timeout=TIMEOUT)
        try:
            pooch.retrieve(base_url + name, f"sha256:{files[name].packed}", name, folder, downloader=downloader)
        except (OSError, ValueError) as error:
            if _is_official(folder / name, files[name]):
                continue  # another process has downloaded it meanwhile
            damaged = (folder / name).exists()
            state = "damaged" if damaged else "missing"
            raise (DataError if damaged else DownloadError)(
                f"{folder / name}: found it {state}, and no download from {base_url} ({_reason(error)}); "
                f"expected the official file with SHA-256 {files[name].packed}. Go online, name a folder that has "
                f"the files (--data-dir or FASHION_MNIST_DIR), apt-get install {PACKAGE}, or use --dataset digits."
            ) from error


def verify(path: Path, official: OfficialFile) -> None:
    """Refuse a file that has not the official content, packed or unpacked."""
    found, stored = _stored(path, official)
    # Packed as Keras packs it, it need not be unpacked here, which takes four times as long.
    if hashlib.sha256(stored).hexdigest() != official.packed:
        _content(found, stored, official)


def read_pair(folder: Path | None, images_name: str, labels_name: str, files: Mapping[str, OfficialFile]) -> Split:
    """Read a file of images and one of labels in the IDX format, each verified."""
    import numpy as np

    assert folder is not None, "only embedded data have no folder"
    images = _read_idx(folder / images_name, files[images_name], dimensions=3)
    labels = _read_idx(folder / labels_name, files[labels_name], dimensions=1)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{folder / images_name}: found images of {images.shape[1:]}, expected ({SIDE}, {SIDE}).")
    if len(images) != len(labels):
        raise DataError(f"{folder}: found {len(images)} images and {len(labels)} labels, expected as many.")
    if labels.size and labels.max() > 9:
        raise DataError(f"{folder / labels_name}: found the label {labels.max()}, expected 0 to 9.")
    return Split(images[..., np.newaxis], labels.astype(np.int64))


def _read_idx(path: Path, official: OfficialFile, dimensions: int) -> NDArray[np.uint8]:
    """Read unsigned bytes in the IDX format: 0, 0, 8, the number of dimensions, four bytes for each size."""
    import numpy as np

    # What is parsed is what was verified, though the file may have changed since it was located.
    raw = _content(*_stored(path, official), official)
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path}: found the header {raw[:4].hex()}, expected 000008{dimensions:02x}, sizes.")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", count=dimensions, offset=4))
    values = np.frombuffer(raw, np.uint8, offset=start)
    if values.size != np.prod(shape, dtype=object):
        raise DataError(f"{path}: found {values.size} values, expected {shape} as its header says.")
    return values.reshape(shape)


def _form(path: Path) -> Path:
    """Return where a file lies: under its own name, or unpacked, or as Kaggle names it or wraps it in a folder."""
    plain = path.with_suffix("")
    dotted = plain.with_name(plain.name.replace("-idx", ".idx"))
    others = (plain, dotted, dotted.with_name(f"{dotted.name}.gz"), plain / plain.name)
    return path if os.path.exists(path) else next(filter(os.path.isfile, others), path)  # noqa: PTH110


def _stored(path: Path, official: OfficialFile) -> tuple[Path, bytes]:
    """Read a file as it is stored, in whatever form; return which, and its bytes."""
    try:
        path = _form(path)
        if path.is_file():
            with path.open("rb") as file:
                return path, file.read(MAX_BYTES)
        found = "no regular file" if path.exists() else "no such file"
    except OSError as error:
        found = _reason(error)
    raise _unusable(path, found, official)


def _content(path: Path, stored: bytes, official: OfficialFile) -> bytes:
    """Unpack what was read from `path`, and refuse anything but the official content."""
    digest = hashlib.sha256(stored).hexdigest()
    content = stored
    # A browser may have unpacked it and kept its name.
    if path.suffix == ".gz" and digest != official.unpacked:
        try:
            with gzip.open(io.BytesIO(stored)) as unpacked:
                content = unpacked.read(MAX_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise _unusable(path, f"SHA-256 {digest}, no readable gzip ({_reason(error)})", official) from error
    if digest != official.packed and hashlib.sha256(content).hexdigest() != official.unpacked:
        raise _unusable(path, f"SHA-256 {digest} (MNIST, for one, has files of the same names)", official)
    return content


def _verify_all(folder: Path) -> None:
    for name, official in OFFICIAL_FILES.items():
        verify(folder / name, official)


def _has_files(folder: Path) -> bool:
    return any(os.path.exists(_form(folder / name)) for name in OFFICIAL_FILES)  # noqa: PTH110


def _has_official(folder: Path) -> bool:
    return all(_is_official(folder / name, official) for name, official in OFFICIAL_FILES.items())


def _is_official(path: Path, official: OfficialFile) -> bool:
    try:
        verify(path, official)
    except DataError:
        return False
    return True


def _unusable(path: Path, found: str, official: OfficialFile) -> DataError:
    return DataError(
        f"{path}: found {found}, expected the official file with SHA-256 {official.packed} "
        f"({official.unpacked} unpacked). "
        "Replace it, or leave out --data-dir and FASHION_MNIST_DIR to have it downloaded into Keras's cache."
    )


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


# What the blog post reports on the official test images; the order is that of the labels.
PUBLISHED = PublishedFigures(
    train_accuracy=0.877,
    holdout_accuracy=0.85,
    by_class={
        "T-shirt/top": (0.87, 0.66),
        "Trouser": (0.96, 0.97),
        "Pullover": (0.79, 0.72),
        "Dress": (0.88, 0.86),
        "Coat": (0.75, 0.77),
        "Sandal": (0.96, 0.96),
        "Shirt": (0.54, 0.71),
        "Sneaker": (0.88, 0.97),
        "Bag": (0.96, 0.96),
        "Ankle boot": (0.98, 0.89),
    },
)
FASHION_MNIST = DatasetKind(
    name="fashion-mnist",
    title="Fashion-MNIST",
    image_shape=(SIDE, SIDE, 1),
    class_names=tuple(PUBLISHED.by_class),
    training_images=50_000,
    validation_share=6,
    locate=locate,
    read_pool=read_pool,
    read_holdout=read_holdout,
    published=PUBLISHED,
)
