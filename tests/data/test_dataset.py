"""The promises of a data set: its division is the same everywhere, and nobody trains on what validates."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fashion_study.data import catalog
from fashion_study.data.dataset import Dataset, Split
from fashion_study.data.digits import enlarge
from fashion_study.errors import BadInputError
from fashion_study.trial import DataSource

pytestmark = pytest.mark.usefixtures("empty_machine")


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


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInputError, match=r"'cifar'.*fashion-mnist, digits"):
        catalog.locate("cifar")


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
