"""The promise about passwords: no message shows that of an address."""

import os
from pathlib import Path

import pytest

from fashion_study.errors import StoreError
from fashion_study.store.mlflow_server import hide_login
from fashion_study.store.store import open_store
from fashion_study.text import without_passwords


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("at postgresql://me:secret@host:5432/runs: refused", "at postgresql://host:5432/runs: refused"),
        ("at http://me:p@ss@host/x and ftp://you:word@there", "at http://host/x and ftp://there"),
        ("mail me@host, see http://host/a@b", "mail me@host, see http://host/a@b"),
        ("'http://secret@host'", "'http://host'"),
    ],
)
def test_addresses_are_shown_without_name_and_password(told: str, expected: str) -> None:
    assert without_passwords(told) == expected


def test_a_log_in_moves_from_the_address_to_mlflow_s_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "of another server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:p%40ss@host:5000/mlflow")

    hide_login()

    kept = {name.removeprefix("MLFLOW_TRACKING_"): os.environ[name] for name in os.environ if "MLFLOW_TRACKING" in name}
    assert kept == {"URI": "https://host:5000/mlflow", "USERNAME": "me", "PASSWORD": "p@ss"}


@pytest.mark.parametrize("uri", ["postgresql://me:secret@host/runs", "sqlite:////data/a@b.db", "https://host", ""])
def test_every_other_address_stays_as_it_is(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    hide_login()
    assert os.environ["MLFLOW_TRACKING_URI"] == uri


def test_a_broken_database_is_named_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://me:secret@nowhere")

    with pytest.raises(StoreError, match="gopher://nowhere") as caught:
        open_store(tmp_path).client()

    assert "secret" not in str(caught.value)
