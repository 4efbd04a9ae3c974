"""The promises of Fashion-MNIST's files: only official images are read, wherever and however they lie."""

import gzip
import logging
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fashion_study.data import catalog, fashion_mnist
from fashion_study.data.dataset import DownloadError
from fashion_study.data.holdout import load_holdout
from fashion_study.errors import DataError, ExitCode
from tests.support.official_files import HTML, TEST, TRAIN, idx, official, put, sha256, small_files

pytestmark = pytest.mark.usefixtures("empty_machine")


def test_a_named_folder_is_used_and_its_images_divided(tmp_path: Path, small_official: dict[str, bytes]) -> None:
    source = catalog.locate("auto", put(tmp_path / "files", small_official))
    data = catalog.load_dataset(source)

    assert (source.name, source.directory, source.is_fallback) == ("fashion-mnist", tmp_path / "files", False)
    assert data.class_names[0] == "T-shirt/top"
    assert (len(data.train.labels), len(data.validation.labels)) == (200, 40)
    numbers = np.concatenate([data.train.images[:, 0, 0, 0], data.validation.images[:, 0, 0, 0]])
    labels = np.concatenate([data.train.labels, data.validation.labels])
    assert sorted(numbers.tolist()) == list(range(240))
    assert np.array_equal(labels, numbers % 10)
    assert np.bincount(data.validation.labels).tolist() == [4] * 10


def test_an_option_overrules_the_folder_of_the_environment(
    tmp_path: Path, small_official: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = put(tmp_path / "first", small_official), put(tmp_path / "second", small_official)
    monkeypatch.setenv("FASHION_MNIST_DIR", str(first))

    by_environment, by_option = catalog.locate("fashion-mnist"), catalog.locate("fashion-mnist", second)

    assert (by_environment.directory, by_option.directory) == (first, second)
    assert by_environment.digest == by_option.digest
    assert catalog.locate("digits").name == "digits"


def test_a_relative_folder_is_found_from_elsewhere(
    tmp_path: Path, small_official: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "files", small_official)
    monkeypatch.chdir(tmp_path)

    source = catalog.locate("fashion-mnist", Path("files"))

    monkeypatch.chdir("/")
    assert len(catalog.load_pool(source).labels) == 240


def test_keras_s_own_cache_is_used_before_the_network(tmp_path: Path, small_official: dict[str, bytes]) -> None:
    cache = put(tmp_path / "keras" / "datasets" / "fashion-mnist", small_official)

    assert catalog.locate("auto").directory == cache


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "missing": None,
    "altered": b"something else",
    "truncated": small_files()[TRAIN[0]][:-1],
    "bit-flipped": flipped(small_files()[TRAIN[0]]),
    "a page of HTML": HTML,
    "empty": b"",
}


@pytest.mark.parametrize("dataset", ["auto", "fashion-mnist"])
@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", [TRAIN[0], TEST[1]])
def test_a_damaged_file_in_a_named_folder_is_refused(
    name: str, content: bytes | None, dataset: str, tmp_path: Path, small_official: dict[str, bytes]
) -> None:
    folder = put(tmp_path / "files", small_official)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)

    with pytest.raises(DataError) as caught:
        catalog.locate(dataset, folder)

    assert caught.value.exit_code == ExitCode.DATA
    found = "no such file" if content is None else sha256(content)
    for said in (
        str(folder / name),
        f"found {found}" if content is None else found,
        "expected",
        "--data-dir",
    ):
        assert said in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_what_is_no_regular_file_is_refused_without_being_opened(
    kind: str, tmp_path: Path, small_official: dict[str, bytes]
) -> None:
    path = put(tmp_path / "files", small_official) / TRAIN[0]
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)

    with pytest.raises(DataError, match=f"{TRAIN[0]}: found no (such|regular) file"):
        catalog.locate("fashion-mnist", tmp_path / "files")


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, small_official: dict[str, bytes]) -> None:
    folder = put(tmp_path / "files", small_official)
    folder.chmod(0)
    mine = os.geteuid()
    # For root no folder is closed.
    os.seteuid(mine or 65_534)
    try:
        with pytest.raises(DataError, match=f"{TRAIN[0]}: found PermissionError"):
            catalog.locate("fashion-mnist", folder)
    finally:
        os.seteuid(mine)
        folder.chmod(0o700)


def test_the_test_set_in_place_of_the_training_set_is_refused(tmp_path: Path, small_official: dict[str, bytes]) -> None:
    swapped = dict(zip((*TRAIN, *TEST), (small_official[name] for name in (*TEST, *TRAIN)), strict=True))

    with pytest.raises(DataError, match=TRAIN[0]):
        catalog.locate("fashion-mnist", put(tmp_path / "files", swapped))


def packed_anew(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: gzip.compress(gzip.decompress(content), 1, mtime=7) for name, content in files.items()}


def unpacked(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name.removesuffix(".gz"): gzip.decompress(content) for name, content in files.items()}


def unpacked_under_the_old_names(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: gzip.decompress(content) for name, content in files.items()}


def dotted(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name.replace("-idx", ".idx"): content for name, content in unpacked(files).items()}


def wrapped(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}/{name}": content for name, content in unpacked(files).items()}


FORMS = [packed_anew, unpacked, unpacked_under_the_old_names, dotted, wrapped]


@pytest.mark.parametrize("stored", FORMS)
def test_files_are_verified_by_what_they_unpack_to(
    stored: Callable[[dict[str, bytes]], dict[str, bytes]], tmp_path: Path, small_official: dict[str, bytes]
) -> None:
    files = stored(small_official)
    assert not set(files.values()) & set(small_official.values())
    source = catalog.locate("fashion-mnist", put(tmp_path / "files", files))
    official = catalog.locate("fashion-mnist", put(tmp_path / "official", small_official))

    assert source.digest == official.digest
    assert catalog.load_dataset(source).split_digest == catalog.load_dataset(official).split_digest
    assert np.array_equal(load_holdout(source).images, load_holdout(official).images)


@pytest.mark.parametrize("stored", [packed_anew, unpacked], ids=["packed anew", "unpacked"])
@pytest.mark.parametrize("cut", [0, 3])
def test_other_content_is_refused_however_it_is_packed(
    stored: Callable[[dict[str, bytes]], dict[str, bytes]],
    cut: int,
    tmp_path: Path,
    small_official: dict[str, bytes],
) -> None:
    damaged = gzip.compress(flipped(gzip.decompress(small_official[TEST[0]])))
    files = stored(small_official | {TEST[0]: damaged})
    files = {name: content[: len(content) - cut] for name, content in files.items()}

    with pytest.raises(DataError, match=r"found SHA-256 .*expected the official file"):
        catalog.locate("fashion-mnist", put(tmp_path / "files", files))


def test_a_gzip_bomb_that_is_not_official_is_refused(tmp_path: Path, small_official: dict[str, bytes]) -> None:
    folder = put(tmp_path / "files", small_official | {TRAIN[0]: gzip.compress(bytes(300 * 2**20))})

    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"{TRAIN[0]}: found SHA-256"):
            catalog.locate("fashion-mnist", folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 200_000_000


def test_a_cache_of_unpacked_files_needs_no_download(small_official: dict[str, bytes]) -> None:
    cache = put(fashion_mnist.keras_cache(), unpacked(small_official))

    assert catalog.locate("fashion-mnist").directory == cache


@pytest.mark.parametrize("inside", ["raw", "FashionMNIST/raw", "data/fashion"])
def test_the_files_are_found_below_a_folder(
    inside: str, tmp_path: Path, small_official: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "files" / "EMNIST" / "raw", small_official | {TRAIN[1]: idx(np.zeros(240))})
    folder = put(tmp_path / "files" / inside, unpacked(small_official))

    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path / "files"))

    assert catalog.locate("auto").directory == folder


def test_a_damaged_file_below_a_folder_is_named(tmp_path: Path, small_official: dict[str, bytes]) -> None:
    folder = put(tmp_path / "files" / "raw", small_official | {TRAIN[1]: HTML})

    with pytest.raises(DataError, match=f"{folder / TRAIN[1]}: found SHA-256"):
        catalog.locate("fashion-mnist", tmp_path / "files")


def test_files_of_another_data_set_are_called_so(tmp_path: Path, small_official: dict[str, bytes]) -> None:
    folder = put(tmp_path / "files", small_official | {TRAIN[1]: idx(np.zeros(240))})

    with pytest.raises(DataError, match=r"MNIST, for one, has files of the same names\), expected the official file"):
        catalog.locate("fashion-mnist", folder)


def test_an_archive_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    archive = put(tmp_path, {"archive.zip": b"PK"}) / "archive.zip"

    with pytest.raises(DataError, match=r"archive\.zip is a file\. Expected the folder of the four"):
        catalog.locate("auto", archive)


@pytest.mark.parametrize("dataset", ["auto", "fashion-mnist"])
def test_debian_s_package_is_used_before_the_network(dataset: str, small_official: dict[str, bytes]) -> None:
    package = put(fashion_mnist.PACKAGE_FOLDER, packed_anew(small_official))
    put(fashion_mnist.keras_cache(), {TRAIN[0]: b"cut short"})

    assert catalog.locate(dataset).directory == package


def test_a_file_that_changes_after_it_was_located_is_refused(tmp_path: Path, small_official: dict[str, bytes]) -> None:
    source = catalog.locate("fashion-mnist", put(tmp_path / "files", small_official))
    (tmp_path / "files" / TRAIN[1]).write_bytes(small_official[TEST[1]])

    with pytest.raises(DataError, match=TRAIN[1]):
        catalog.load_dataset(source)


WITHOUT_NETWORK = {"nothing there": {}, "one file of four": {TEST[1]: small_files()[TEST[1]]}}


@pytest.mark.parametrize("cached", WITHOUT_NETWORK.values(), ids=WITHOUT_NETWORK.keys())
@pytest.mark.usefixtures("small_official")
def test_without_files_and_network_only_auto_falls_back(
    cached: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    put(fashion_mnist.keras_cache(), cached)
    with pytest.raises(DownloadError, match=r"missing.*127\.0\.0\.1.*apt-get install dataset-fashion-mnist.*digits"):
        catalog.locate("fashion-mnist")
    with caplog.at_level(logging.WARNING):
        source = catalog.locate("auto")

    assert (source.name, source.is_fallback) == ("digits", True)
    assert "Falling back to the embedded digits" in caplog.text
    assert "apt-get install dataset-fashion-mnist" in catalog.FALLBACK
    assert source.digest == catalog.locate("digits").digest


@pytest.mark.parametrize("dataset", ["auto", "fashion-mnist"])
def test_a_damaged_cache_file_that_stays_so_is_named(dataset: str, small_official: dict[str, bytes]) -> None:
    cache = put(fashion_mnist.keras_cache(), small_official | {TRAIN[0]: b"cut short"})

    with pytest.raises(DataError, match=r"damaged.*--dataset digits") as caught:
        catalog.locate(dataset)

    assert str(cache / TRAIN[0]) in str(caught.value)


BROKEN_PAIRS = {
    "no gzip": ({TRAIN[0]: b"plain"}, "no readable gzip"),
    "half a gzip": ({TRAIN[0]: small_files()[TRAIN[0]][:99]}, "no readable gzip"),
    "nothing inside": ({TRAIN[0]: gzip.compress(b"")}, "found the header"),
    "labels for images": ({TRAIN[0]: small_files()[TRAIN[1]]}, "expected 00000803"),
    "fewer values than announced": (
        {TRAIN[1]: gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + b"\1")},
        "found 1 values",
    ),
    "half a gzip that was cut in its last bytes": ({TRAIN[0]: small_files()[TRAIN[0]][:-4]}, "no readable gzip"),
    "a flipped bit": ({TRAIN[0]: flipped(small_files()[TRAIN[0]])}, "no readable gzip"),
    "a page of HTML": ({TRAIN[0]: HTML}, "no readable gzip"),
    "a page of HTML, packed": ({TRAIN[0]: gzip.compress(HTML)}, "found the header 3c21444f"),
    "another kind of numbers": ({TRAIN[1]: gzip.compress(bytes([0, 0, 13, 1, 0, 0, 0, 1, 0]))}, "expected 00000801"),
    "a header without its sizes": ({TRAIN[0]: gzip.compress(bytes([0, 0, 8, 3, 0, 0]))}, "found the header"),
    "more values than announced": (
        {TRAIN[1]: gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1]) + b"\1\1")},
        "found 2 values",
    ),
    "four thousand million announced": (
        {TRAIN[0]: gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12)},
        "found 0 values",
    ),
    "train images with test labels": ({TRAIN[1]: small_files()[TEST[1]]}, "240 images and 40 labels"),
    "other sizes": ({TRAIN[0]: idx(np.zeros((240, 8, 8)))}, "expected (28, 28)"),
    "other counts": ({TRAIN[1]: idx(np.zeros(9))}, "240 images and 9 labels"),
    "an eleventh class": ({TRAIN[1]: idx(np.full(240, 10))}, "label 10, expected 0 to 9"),
}


@pytest.mark.parametrize(("change", "said"), BROKEN_PAIRS.values(), ids=BROKEN_PAIRS.keys())
def test_a_file_that_is_no_set_of_images_is_refused(change: dict[str, bytes], said: str, tmp_path: Path) -> None:
    files = small_files() | change

    with pytest.raises(DataError) as caught:
        fashion_mnist.read_pair(put(tmp_path / "files", files), *TRAIN, official(files))

    assert said in str(caught.value)


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (400_000, 28, 28))
    bomb = gzip.compress(header + bytes(400_000 * 784))
    files = small_files() | {TRAIN[0]: bomb}
    folder, known = put(tmp_path / "files", files), official(files)

    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"expected \(400000, 28, 28\) as its header says"):
            fashion_mnist.read_pair(folder, *TRAIN, known)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 200_000_000
    assert len(bomb) < 500_000


def test_a_study_s_data_comes_without_opening_the_test_set(tmp_path: Path, small_official: dict[str, bytes]) -> None:
    folder = put(tmp_path / "files", small_official)
    source = catalog.locate("fashion-mnist", folder)
    for name in TEST:
        (folder / name).unlink()

    assert len(catalog.load_dataset(source).train.labels) == 200
    assert len(catalog.load_pool(source).labels) == 240


def test_the_official_files_divide_into_50_000_and_10_000(fashion_mnist_dir: Path) -> None:
    data = catalog.load_dataset(catalog.locate("fashion-mnist", fashion_mnist_dir))

    assert data.train.images.shape == (50_000, 28, 28, 1)
    assert data.source.digest == "160f17b0d74ef6a79aa5245caa529204f34bd0073a378c22956c0229f2097603", (
        "stored studies would not be continued"
    )
    assert np.bincount(data.train.labels).tolist() == [5_000] * 10
    assert np.bincount(data.validation.labels).tolist() == [1_000] * 10
    assert data.split_digest == "11f1dc12e43ffb098e5ca2f2de8c7dddf79b8445090bce91bdd67ffd1302647f", (
        "the split of Fashion-MNIST changed: stored studies cannot be resumed or compared"
    )
