import pytest

# Before TensorFlow, as a worker imports it: the kernels that it enables decide what a seed trains to.
import fashion_study.training  # noqa: F401
from fashion_study.data.catalog import load_dataset, locate
from fashion_study.data.dataset import Dataset


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset(locate("digits"))
