"""The promises of the download: whole and verified files or none, whatever ends it."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path

import pytest

from fashion_study.data import catalog, fashion_mnist
from fashion_study.data.dataset import DownloadError
from fashion_study.data.fashion_mnist import OfficialFile
from fashion_study.errors import DataError
from tests.faults.table import RecordFault
from tests.support.official_files import HTML, TRAIN, official, put, small_files

pytestmark = pytest.mark.usefixtures("empty_machine")


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


@pytest.mark.usefixtures("small_official")
def test_nothing_is_downloaded_where_that_is_not_wanted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "BASE_URL", site.url)

    with pytest.raises(DataError, match="no such file"):
        catalog.locate("fashion-mnist", may_download=False)

    assert site.asked == []


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
