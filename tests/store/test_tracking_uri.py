"""The promises about MLFLOW_TRACKING_URI: what can be no address, or answers as no MLflow does, is refused at once."""

import os
from pathlib import Path

import pytest

from fashion_study.errors import StoreError
from fashion_study.store.store import open_store
from tests.support.http_server import answering


def refused(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError) as caught:
        open_store(root / "store")
    assert list(root.iterdir()) == []
    assert "secret" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://host:5010/#/experiments/1", "http://host:5010"),
        ("https://me:secret@host/mlflow/?page=2#/models", "https://host/mlflow"),
        ("http://host:5010 ", "http://host:5010"),
        (" http://host:5010", "http://host:5010"),
        ('"http://host:5010"', "http://host:5010"),
        ("'http://host:5010'\n", "http://host:5010"),
        ("localhost:5000", "http://localhost:5000"),
        ("host.example:5000/mlflow", "http://host.example:5000/mlflow"),
        ("HTTP://host:5010/", "http://host:5010"),
        ("http://host:port", "http://HOST:PORT"),
        ("http:///experiments", "http://HOST:PORT"),
        ("http://ho st", "http://HOST:PORT"),
        ("http://[::1", "http://HOST:PORT"),
        ("http://me:secret@host/#/models/digits-cnn@champion", "http://host"),
    ],
)
def test_an_address_that_is_no_server_s_names_what_was_meant(
    uri: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refused(tmp_path, uri, monkeypatch)
    assert message.startswith("MLFLOW_TRACKING_URI is ")
    assert message.endswith(f" Expected {expected}.")


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "/tmp/mlruns", "file:///tmp/mlruns", "file:mlruns"])
def test_a_folder_is_no_address(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(tmp_path, uri, monkeypatch)
    assert "names a folder" in message
    assert "--store" in message

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert open_store(tmp_path / "store").tracking_uri == uri


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("mysql://me:secret@host/runs", ("'MySQLdb'", "python -m pip install 'mysqlclient'")),
        ("mysql+pymysql://host/runs", ("'pymysql'",)),
        ("mssql://me:secret@host/runs", ("'pyodbc'", "python -m pip install 'pyodbc'")),
        ("postgresql+psycopg2://me:secret@host/runs", ("'psycopg2'", "python -m pip install 'psycopg[binary]'")),
        ("postgresql+psycopg://me:secret@127.0.0.1:9/runs", ("127.0.0.1:9/runs", "Connection refused")),
        ("postgresql+nothing://host/runs", ("cannot be opened", "nothing")),
        ("postgres://me:se/secret@host/runs", ("did you mean postgresql?",)),
        ("wss://host", ("begins with wss:, which MLflow does not know",)),
    ],
)
def test_a_database_that_cannot_be_had_is_named_with_its_driver(
    uri: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refused(tmp_path, uri, monkeypatch)
    for word in ("MLFLOW_TRACKING_URI", *words):
        assert word in message


PAGE = "<!doctype html><title>a page</title>"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, PAGE, "a web page answers, and no MLflow server.* Correct the address"),
        (404, PAGE, r"it answers with 404 \(Not Found\).* Correct the path in its address"),
        (404, '{"detail":"Not Found"}', "it answers with 404"),
        (405, "Method Not Allowed", "it answers with 405"),
        (403, "Invalid Host header - possible DNS rebinding", "Invalid Host header.* --allowed-hosts 127.0.0.1"),
        (403, PAGE, "refuses a user who names no account: 403"),
    ],
)
def test_what_answers_as_no_mlflow_server_does_is_refused(
    status: int, body: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(status, body) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(StoreError, match=words):
            open_store(tmp_path)


def test_an_error_that_mlflow_itself_tells_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(404, '{"error_code": "ENDPOINT_NOT_FOUND"}') as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert open_store(tmp_path).tracking_uri == address


def test_a_host_that_nobody_knows_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(tmp_path, "http://nohost.invalid:5000", monkeypatch)
    assert "http://nohost.invalid:5000 does not answer" in message
    assert "Correct the host's name" in message


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE"])
def test_a_certificate_that_is_not_there_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/nowhere/ca.pem")
    assert refused(tmp_path, "https://127.0.0.1:9", monkeypatch).startswith(f"{name} is /nowhere/ca.pem, which is not")


@pytest.mark.parametrize("name", ["http_proxy", "ALL_PROXY"])
def test_a_proxy_that_takes_what_is_local_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, "{}") as address, answering(403, PAGE) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv(name, proxy.replace("//", "//me:secret@"))
        with pytest.raises(StoreError, match=f"403 .*through the proxy {proxy}.* Add 127.0.0.1 to NO_PROXY"):
            open_store(tmp_path)

        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert open_store(tmp_path).tracking_uri == os.environ["MLFLOW_TRACKING_URI"]


def test_a_proxy_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert "(asked through the proxy socks5://127.0.0.1:9)" in refused(tmp_path, "http://localhost:5000", monkeypatch)
