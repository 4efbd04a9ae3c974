"""The promises of the data: only official images are read, and nobody trains on what validates."""

import gzip
import hashlib
import http.server
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fashion_study.data import catalog, fashion_mnist
from fashion_study.data.dataset import Dataset, DownloadError, Split
from fashion_study.data.digits import enlarge
from fashion_study.data.fashion_mnist import OfficialFile
from fashion_study.data.holdout import load_holdout
from fashion_study.errors import BadInputError, DataError, ExitCode
from fashion_study.trial import DataSource
from tests.faults.table import RecordFault

NOWHERE = "http://127.0.0.1:9/"
TRAIN = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
TEST = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


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


@dataclass
class Site:
    """Serve files over HTTP.

    A file in `cut` ends halfway, though its whole length was announced; one in `stalled` waits there for `going_on`;
    one in `moved` is somewhere else.
    """

    files: dict[str, bytes]
    cut: set[str] = field(default_factory=set)
    stalled: set[str] = field(default_factory=set)
    moved: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    halfway: threading.Event = field(default_factory=threading.Event)
    going_on: threading.Event = field(default_factory=threading.Event)
    url: str = ""


@pytest.fixture
def site() -> Iterator[Site]:
    served = Site(small_files())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            served.asked.append(name)
            if name in served.moved:
                self.send_response(302)
                self.send_header("Location", served.moved[name])
                self.end_headers()
                return
            if name not in served.files:
                self.send_error(404)
                return
            content = served.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(ConnectionError):
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                if name in served.stalled:
                    served.halfway.set()
                    served.going_on.wait()
                if name not in served.cut:
                    self.wfile.write(content[len(content) // 2 :])

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/"
    yield served
    served.going_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Give each test a machine without images and without a network."""
    if "fashion_mnist_dir" in request.fixturenames:
        request.getfixturevalue("fashion_mnist_dir")  # reads the variable before it is gone
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(fashion_mnist, "BASE_URL", NOWHERE)
    monkeypatch.setattr(fashion_mnist, "PACKAGE_FOLDER", tmp_path / "package")


@pytest.fixture
def small_official(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Let the small files be the official ones."""
    files = small_files()
    monkeypatch.setattr(fashion_mnist, "OFFICIAL_FILES", official(files))
    return files


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return catalog.load_dataset(catalog.locate("digits"))


def rows(split: Split) -> set[bytes]:
    return {image.tobytes() for image in split.images}


def test_digits_are_images_of_28_by_28_from_0_to_255(digits: Dataset) -> None:
    assert digits.source == DataSource("digits", None, digits.source.digest)
    assert digits.class_names == tuple("0123456789")
    assert digits.train.images.shape == (1079, 28, 28, 1)
    assert digits.validation.images.shape == (359, 28, 28, 1)
    for split in (digits.train, digits.validation):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert (split.images.min(), split.images.max()) == (0, 255)
        assert np.bincount(split.labels).min() >= len(split.labels) // 12


def test_an_enlarged_image_keeps_its_brightness_and_its_shape() -> None:
    even = np.full((1, 8, 8), 16.0)
    ramp = np.broadcast_to(np.arange(8.0), (1, 8, 8))

    assert np.array_equal(np.unique(enlarge(even)), [255])
    row = enlarge(ramp)[0, 5, :, 0].astype(int)
    assert np.all(np.diff(row) >= 0)
    assert (row[0], row[-1]) == (0, round(7 * 255 / 16))
    assert np.array_equal(enlarge(ramp.swapaxes(1, 2))[0, :, 5, 0], row)


def test_the_split_is_the_same_in_every_call_and_release(digits: Dataset) -> None:
    again = catalog.load_dataset(catalog.locate("digits"))

    assert again.split_digest == digits.split_digest
    assert np.array_equal(again.train.images, digits.train.images)
    changed = "the split or the images of digits changed: stored studies cannot be resumed or compared"
    assert digits.split_digest == "705df9704b2c6a5a8644e1c576950feb7ca6048f3fc6af8e2a8d4b8440bd5e67", changed
    assert digits.source.digest == "6509b3954017ece619a1fe57963d55293aac36a04a60fa90e7cd90591de6783b", changed


def test_a_limit_keeps_class_shares_and_the_validation_images(digits: Dataset) -> None:
    limited = catalog.load_dataset(digits.source, limit_train=100)
    smaller = catalog.load_dataset(digits.source, limit_train=50)

    assert np.bincount(limited.train.labels).tolist() == [10] * 10
    assert rows(smaller.train) < rows(limited.train) < rows(digits.train)
    assert np.array_equal(limited.validation.images, digits.validation.images)
    assert limited.split_digest != digits.split_digest
    everything = catalog.load_dataset(digits.source, limit_train=len(digits.train.labels))
    assert everything.split_digest == digits.split_digest


@pytest.mark.parametrize("limit", [-1, 0, 19, 1080])
def test_a_limit_that_cannot_be_kept_is_refused(limit: int, digits: Dataset) -> None:
    with pytest.raises(BadInputError, match=rf"--limit-train is {limit}\. Expected 20 to 1,079"):
        catalog.load_dataset(digits.source, limit_train=limit)


def test_all_training_images_are_those_that_train_or_validate(digits: Dataset) -> None:
    together = catalog.load_pool(digits.source)

    assert len(together.labels) == len(digits.train.labels) + len(digits.validation.labels)
    assert rows(together) == rows(digits.train) | rows(digits.validation)


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


HTML = b"<!DOCTYPE html><html><body>Please log in to this network.</body></html>"
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


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInputError, match=r"'cifar'.*fashion-mnist, digits"):
        catalog.locate("cifar")


@pytest.mark.usefixtures("small_official")
def test_nothing_is_downloaded_where_that_is_not_wanted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "BASE_URL", site.url)

    with pytest.raises(DataError, match="no such file"):
        catalog.locate("fashion-mnist", may_download=False)

    assert site.asked == []


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


def test_a_download_brings_the_verified_files_and_nothing_else(tmp_path: Path, site: Site) -> None:
    fashion_mnist.download(tmp_path / "cache", site.url, official(site.files))
    fashion_mnist.download(tmp_path / "cache", site.url, official(site.files))

    assert {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == site.files
    assert sorted(site.asked) == sorted(site.files)


def test_auto_downloads_into_keras_s_cache(
    site: Site, small_official: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "BASE_URL", site.url)

    source = catalog.locate("auto")

    assert (source.name, source.directory, source.is_fallback) == (
        "fashion-mnist",
        fashion_mnist.keras_cache(),
        False,
    )
    assert (fashion_mnist.keras_cache() / TRAIN[0]).read_bytes() == small_official[TRAIN[0]]


def test_a_damaged_file_in_the_cache_is_downloaded_again(tmp_path: Path, site: Site) -> None:
    cache = put(tmp_path / "cache", site.files | {TRAIN[0]: b"cut short"})

    fashion_mnist.download(cache, site.url, official(site.files))

    assert (cache / TRAIN[0]).read_bytes() == site.files[TRAIN[0]]
    assert site.asked == [TRAIN[0]]


@pytest.mark.parametrize("fault", ["altered", "html", "truncated", "absent", "goes round", "moved to a page"])
def test_a_failed_download_leaves_no_file(fault: str, tmp_path: Path, site: Site) -> None:
    expected = official(site.files)
    match fault:
        case "altered":
            site.files[TRAIN[0]] = b"something else"
        case "html":
            site.files[TRAIN[0]] = HTML
        case "truncated":
            site.cut.add(TRAIN[0])
        case "absent":
            del site.files[TRAIN[0]]
        case "goes round":
            site.moved[TRAIN[0]] = f"/{TRAIN[0]}"
        case "moved to a page":
            site.files["login.html"] = HTML
            site.moved[TRAIN[0]] = "/login.html"

    with pytest.raises(DownloadError, match=f"{TRAIN[0]}.*{expected[TRAIN[0]].packed}"):
        fashion_mnist.download(tmp_path / "cache", site.url, expected)

    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_has_moved_is_followed_and_verified(tmp_path: Path, site: Site) -> None:
    expected = official(site.files)
    site.files["elsewhere"] = site.files[TRAIN[0]]
    site.moved[TRAIN[0]] = "/elsewhere"

    fashion_mnist.download(tmp_path / "cache", site.url, expected)

    assert (tmp_path / "cache" / TRAIN[0]).read_bytes() == site.files["elsewhere"]


def downloading(cache: Path, site: Site, expected: dict[str, OfficialFile]) -> subprocess.Popen[str]:
    """Download in a process of its own."""
    code = (
        "import json, sys; from pathlib import Path; from fashion_study.data import fashion_mnist; "
        "files = {name: fashion_mnist.OfficialFile(*both) for name, both in json.loads(sys.argv[3]).items()}; "
        "fashion_mnist.download(Path(sys.argv[1]), sys.argv[2], files)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(cache),
        site.url,
        json.dumps({name: astuple(file) for name, file in expected.items()}),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.faults
def test_a_kill_in_mid_download_leaves_no_partial_file(tmp_path: Path, site: Site, record_fault: RecordFault) -> None:
    cache, expected = tmp_path / "cache", official(site.files)
    site.stalled.add(TRAIN[0])
    with downloading(cache, site, expected) as process:
        assert site.halfway.wait(60)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not expected.keys() & {path.name for path in cache.iterdir()}
    site.stalled.clear()
    site.going_on.set()

    fashion_mnist.download(cache, site.url, expected)

    assert {name: (cache / name).read_bytes() for name in expected} == site.files
    record_fault("SIGKILL in the middle of a download", "I6")


@pytest.mark.faults
def test_two_processes_that_download_at_once_both_succeed(
    tmp_path: Path, site: Site, record_fault: RecordFault
) -> None:
    cache, expected = tmp_path / "cache", official(site.files)
    site.stalled.add(TRAIN[0])
    with downloading(cache, site, expected) as first:
        assert site.halfway.wait(60)
        site.stalled.clear()
        with downloading(cache, site, expected) as second:
            assert second.wait(60) == 0
        # The second one has brought every file while the first one waited in the middle of its first.
        assert {name: (cache / name).read_bytes() for name in expected} == site.files
        site.going_on.set()
    assert first.returncode == 0

    assert {path.name: path.read_bytes() for path in cache.iterdir()} == site.files
    record_fault("two downloads at once", "I6")


def test_two_downloads_at_once_end_with_the_same_whole_files(tmp_path: Path, site: Site) -> None:
    cache, expected = tmp_path / "cache", official(site.files)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(fashion_mnist.download, cache, site.url, expected) for _ in range(2)]
        for one in both:
            one.result()

    assert {path.name: path.read_bytes() for path in cache.iterdir()} == site.files


def test_a_cache_that_cannot_be_written_counts_as_no_download(tmp_path: Path, site: Site) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")

    with pytest.raises(DownloadError, match="missing"):
        fashion_mnist.download(tmp_path / "cache", site.url, official(site.files))


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


def test_the_module_is_imported_without_the_slow_libraries() -> None:
    code = (
        "import sys, fashion_study.data.catalog; "
        "print(sorted({'tensorflow', 'mlflow', 'optuna', 'sklearn', 'pooch', 'scipy', 'numpy'} & set(sys.modules)))"
    )
    path = str(Path(catalog.__file__).parents[2])

    shown = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert shown.stdout.strip() == "[]"


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
