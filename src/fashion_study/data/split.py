"""The stratified division of images into those that train and those that validate, and its digest."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from fashion_study.data.dataset import Split

# The same for every study, whatever its seed: runs of one experiment are compared on the same images.
SPLIT_SEED = 20_170_825


def divide(pool: Split, validation_share: int, limit_train: int | None) -> tuple[Split, Split, str]:
    """Divide images into training and validation; return both, and a digest of which images are in which.

    One image in `validation_share` validates. `limit_train` keeps that many training images, stratified.
    """
    train, validation = stratified(pool.labels, keep=len(pool.labels) - len(pool.labels) // validation_share)
    if limit_train is not None:
        train = train[_limited(pool.labels[train], limit_train)]
    numbers = np.arange(len(pool.labels)) if pool.numbers is None else pool.numbers
    split_digest = digest(*(numbers[indices].astype("<i8").tobytes() for indices in (train, validation)))
    return pool.take(train), pool.take(validation), split_digest


def stratified(labels: NDArray[np.int64], keep: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide images into `keep` and the rest, each as sorted indices and with every class in proportion."""
    from sklearn.model_selection import train_test_split

    kept, rest = train_test_split(np.arange(len(labels)), train_size=keep, random_state=SPLIT_SEED, stratify=labels)
    return np.sort(kept), np.sort(rest)


def digest(*parts: bytes) -> str:
    """Return the SHA-256 of several parts, each with its length."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()


def _limited(labels: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    # Each image's rank within its class, as a share of the class: the first of this order are always
    # stratified, and a smaller limit is a subset of a larger one. RandomState never changes its stream.
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    share = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.argsort(share, kind="stable")[:limit])
