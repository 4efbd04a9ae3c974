import pytest

from fashion_study.data.catalog import load_dataset, locate
from fashion_study.data.dataset import Dataset


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset(locate("digits"))
