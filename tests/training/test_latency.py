"""The promises of the comparison of latencies."""

import keras
import numpy as np

from fashion_study.training.latency import interleaved_ms
from fashion_study.training.model import build_model
from fashion_study.trial import Hyperparameters


def test_a_model_with_far_more_to_compute_takes_longer_in_either_place() -> None:
    small, large = (build_model(Hyperparameters(filters_1=size, filters_2=size), (28, 28, 1), 10) for size in (2, 256))
    images = np.zeros((64, 28, 28, 1), dtype=np.uint8)
    first, second = interleaved_ms((small, large), images)
    third, fourth = interleaved_ms((large, small), images)
    assert 0 < first < second
    assert third > fourth > 0


def test_one_image_is_enough() -> None:
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten()])
    assert min(interleaved_ms((model, model), np.zeros((1, 28, 28, 1), dtype=np.uint8))) > 0
