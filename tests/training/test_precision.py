from fashion_study.training.precision import probe
from fashion_study.trial import Hyperparameters


def test_the_probe_measures_both_precisions_and_keeps_the_faster() -> None:
    found = probe((32, 40, 3), 3, Hyperparameters(filters_1=8, filters_2=8, filters_3=8))
    assert set(found.images_per_second) == {"float32", "bfloat16"}
    assert all(speed > 0 for speed in found.images_per_second.values())
    assert found.precision.value == max(found.images_per_second, key=lambda name: found.images_per_second[name])
