"""A machine without images and without a network, and small files in the official ones' place."""

from pathlib import Path

import pytest

from fashion_study.data import fashion_mnist
from tests.support.official_files import official, small_files

NOWHERE = "http://127.0.0.1:9/"


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Give a test a machine without images and without a network."""
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
