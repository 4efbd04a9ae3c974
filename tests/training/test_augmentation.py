"""The promises of augmentation: what becomes of a picture follows from seed, epoch and its number."""

from typing import Any

import numpy as np
import pytest

from fashion_study.training.augmentation import Augmentation
from fashion_study.trial import Hyperparameters

N, SIDE = 400, 12
PICTURES = np.random.default_rng(0).integers(1, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
ALL = np.arange(N)


def changed(epoch: int = 1, seed: int = 5, index: np.ndarray = ALL, **changes: Any) -> np.ndarray:
    augmentation = Augmentation.drawn(Hyperparameters(**changes), N, seed, epoch)
    assert augmentation is not None
    before = PICTURES.copy()
    after = augmentation.apply(PICTURES, index)
    np.testing.assert_array_equal(PICTURES, before)
    assert after.dtype == np.uint8
    return after


def is_flipped(after: np.ndarray) -> np.ndarray:
    same, mirrored = ((after == side).all((1, 2, 3)) for side in (PICTURES, PICTURES[:, :, ::-1]))
    assert (same ^ mirrored).all()
    return np.asarray(mirrored)


def test_the_blog_s_pictures_stay_as_they_are() -> None:
    assert Augmentation.drawn(Hyperparameters(), N, 5, 1) is None


def test_random_flips_mirror_half_of_the_pictures_anew_in_each_epoch() -> None:
    first, second = (is_flipped(changed(epoch, flip="random")) for epoch in (1, 2))
    assert first.mean() == pytest.approx(0.5, abs=0.1)
    assert (first == second).mean() == pytest.approx(0.5, abs=0.1)


def test_alternating_flips_mirror_each_picture_in_every_other_epoch() -> None:
    first, second, third = (is_flipped(changed(epoch, flip="alternating")) for epoch in (1, 2, 3))
    assert first.mean() == pytest.approx(0.5, abs=0.1)
    assert (first != second).all()
    assert (first == third).all()


def test_shifts_move_a_picture_by_whole_pixels_in_every_direction() -> None:
    after = changed(shift=2)
    padded = np.pad(PICTURES, ((0, 0), (2, 2), (2, 2), (0, 0)), "edge")
    moves = {
        (down, right): padded[:, 2 - down : 14 - down, 2 - right : 14 - right]
        for down in range(-2, 3)
        for right in range(-2, 3)
    }
    hits = {move: int((after == moved).all((1, 2, 3)).sum()) for move, moved in moves.items()}
    assert sum(hits.values()) == N
    assert min(hits.values()) > 0


def test_erasing_sets_one_box_of_some_pictures_to_zero() -> None:
    after = changed(erasing=0.6)
    erased = (after == 0).all(3)
    np.testing.assert_array_equal(after[~erased], PICTURES[~erased])
    touched = erased.any((1, 2))
    assert touched.mean() == pytest.approx(0.6, abs=0.1)
    for mask in erased[touched]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert mask.mean() <= 0.35


def test_what_becomes_of_a_picture_does_not_depend_on_its_batch() -> None:
    everything: dict[str, Any] = {"flip": "random", "shift": 3, "erasing": 0.5}
    together = changed(**everything)
    some = np.random.default_rng(1).permutation(N)[:37]
    np.testing.assert_array_equal(changed(index=some, **everything), together[some])
    assert not np.array_equal(changed(seed=6, **everything), together)
    assert not np.array_equal(changed(epoch=2, **everything), together)


def test_one_change_does_not_decide_what_another_draws() -> None:
    flipped = is_flipped(changed(flip="random"))
    both = changed(flip="random", erasing=1.0)
    for picture, original, mirrored in zip(both, PICTURES, flipped, strict=True):
        kept = picture != 0
        assert (picture[kept] == (original[:, ::-1] if mirrored else original)[kept]).all()
