"""The promise about temporary files: where there is no room for them, that folder is named, and nothing else blamed."""

import errno
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fashion_study.errors import StoreError
from fashion_study.paths import check_temporary_folder
from fashion_study.store.failures import StoreFailurePolicy, store_failures
from fashion_study.store.store import find_store, open_store


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.fixture
def full(temporary: Path) -> Iterator[Path]:
    """A folder for files of up to a kilobyte."""
    temporary.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        yield temporary
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_room_for_temporary_files_leaves_nothing_behind(temporary: Path) -> None:
    temporary.mkdir()
    check_temporary_folder()
    assert list(temporary.iterdir()) == []


def test_no_command_begins_without_room_for_temporary_files(full: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"temporary files, {full}, cannot be used: File too large.* TMPDIR"):
        open_store(tmp_path / "store")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mlflow.db").touch()
    with pytest.raises(StoreError, match="temporary files"):
        find_store(tmp_path / "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "temporary"]


def test_a_store_is_not_blamed_for_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))

    with pytest.raises(StoreError, match="gone, cannot be used: No such file"), store_failures(store, "Do this."):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StoreError, match="gone, cannot be used: No such file"), store_failures(store, "Do this."):
        tempfile.mkdtemp()
    policy = StoreFailurePolicy()
    policy.has_failed("trial 000", "no room")
    with pytest.raises(StoreError, match="gone, cannot be used: No such file"):
        policy.has_failed("trial 000", "no room")
