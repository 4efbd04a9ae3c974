"""Small files in the place of Fashion-MNIST's four official ones."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from fashion_study.data.fashion_mnist import OfficialFile

TRAIN = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
TEST = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
HTML = b"<!DOCTYPE html><html><body>Please log in to this network.</body></html>"


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0)


def small_files() -> dict[str, bytes]:
    """Make four files as the official ones are, with 240 and 40 images; each image carries its own number."""
    files = {}
    for (images_name, labels_name), count in ((TRAIN, 240), (TEST, 40)):
        images = np.zeros((count, 28, 28))
        images[:, 0, 0] = np.arange(count)
        files[images_name] = idx(images)
        files[labels_name] = idx(np.arange(count) % 10)
    return files


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def official(files: dict[str, bytes]) -> dict[str, OfficialFile]:
    """Let files be the official ones, as they are stored and, where they can be unpacked, as they unpack."""
    found = {}
    for name, content in files.items():
        try:
            unpacked = sha256(gzip.decompress(content))
        except (OSError, EOFError, zlib.error):
            unpacked = "cannot be unpacked"
        found[name] = OfficialFile(sha256(content), unpacked)
    return found


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
