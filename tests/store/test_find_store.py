"""The promises of an earlier store: it is found or refused, and nothing is made."""

from pathlib import Path

import pytest

from fashion_study.errors import StoreError
from fashion_study.store.store import find_store
from tests.support.untouched import read_only


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store in"):
        find_store(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["", "http://127.0.0.1:9"])
def test_a_name_that_no_file_can_have_is_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError, match="cannot be looked into: File name too long"):
        find_store(tmp_path / ("x" * 300))


def test_beside_a_server_of_the_user_s_no_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert find_store(tmp_path / "store").root == tmp_path / "store"
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_store_is_found_by_who_only_reads(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with read_only(tmp_path):
        assert find_store(tmp_path).root == tmp_path
        with pytest.raises(StoreError, match=r"is read-only.*may be written: it is needed. Change"):
            find_store(tmp_path, writes="it is needed")
    assert find_store(tmp_path, writes="it is needed").root == tmp_path
