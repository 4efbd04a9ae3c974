"""The promises of the holdout: it is whole, it is apart from what a study sees, and it is read on purpose."""

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fashion_study.data import catalog, fashion_mnist
from fashion_study.data.dataset import stratified
from fashion_study.data.digits import enlarge
from fashion_study.data.holdout import load_holdout
from fashion_study.errors import DataError
from fashion_study.trial import DataSource


def test_the_digits_holdout_and_pool_are_disjoint_and_complete() -> None:
    digits = load_digits()
    everything = enlarge(digits.images)
    labels = digits.target.astype(np.int64)
    source = catalog.locate("digits")
    seen, holdout = catalog.load_pool(source), load_holdout(source)
    in_use, _ = stratified(labels, keep=1438)
    unseen = np.setdiff1d(np.arange(len(labels)), in_use)

    assert (len(in_use), len(unseen)) == (1438, 359)
    assert np.array_equal(seen.images, everything[in_use])
    assert np.array_equal(holdout.images, everything[unseen])
    assert np.array_equal(holdout.labels, labels[unseen])
    assert np.bincount(holdout.labels).min() >= 30


def test_the_holdout_has_the_shape_of_what_a_model_is_trained_on() -> None:
    source = catalog.locate("digits")
    holdout, train = load_holdout(source), catalog.load_dataset(source).train

    assert holdout.images.shape[1:] == train.images.shape[1:]
    assert (holdout.images.dtype, holdout.labels.dtype) == (train.images.dtype, train.labels.dtype)


def test_the_official_holdout_is_the_10_000_test_images(fashion_mnist_dir: Path) -> None:
    source = catalog.locate("fashion-mnist", fashion_mnist_dir)
    holdout, pool = load_holdout(source), catalog.load_pool(source)

    assert holdout.images.shape == (10_000, 28, 28, 1)
    assert np.bincount(holdout.labels).tolist() == [1_000] * 10
    shared = {image.tobytes() for image in holdout.images} & {image.tobytes() for image in pool.images}
    assert len(shared) < 10, "the files themselves share almost no image; more means that a split leaked"


def test_an_altered_official_test_set_is_refused(tmp_path: Path) -> None:
    names = list(fashion_mnist.OFFICIAL_FILES)
    for name in names:
        (tmp_path / name).write_bytes(b"altered")
    source = DataSource("fashion-mnist", tmp_path, "0" * 64)

    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: found SHA-256"):
        load_holdout(source)


def test_only_the_holdout_s_own_module_reads_it() -> None:
    package = Path(catalog.__file__).parents[1]
    reading = {path.name for path in package.rglob("*.py") if re.search(r"\.read_holdout\b", path.read_text())}

    assert reading == {"holdout.py"}
