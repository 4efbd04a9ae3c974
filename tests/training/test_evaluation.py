import keras
import numpy as np
import pytest
import tensorflow as tf

from fashion_study.data.dataset import Split
from fashion_study.training.evaluation import evaluate, interleaved_ms
from fashion_study.training.model import build_model
from fashion_study.trial import Hyperparameters
from fashion_study.worker.record import final_metrics

NAMES = ("T-shirt/top", "Trouser", "Ankle boot")


def first_pixel(batch: tf.Tensor, *, training: bool) -> tf.Tensor:
    """Predict the class that the first pixel names, with a probability of 0.8."""
    assert not training
    return 0.1 + 0.7 * tf.one_hot(tf.cast(batch[:, 0, 0, 0], tf.int32), len(NAMES))


def split(labels: list[int], predicted: list[int]) -> Split:
    images = np.zeros((len(labels), 28, 28, 1), dtype=np.uint8)
    images[:, 0, 0, 0] = predicted
    return Split(images, np.asarray(labels, dtype=np.int64))


def test_rows_are_true_and_columns_predicted_classes() -> None:
    found = evaluate(first_pixel, split([0, 0, 0, 1, 1, 2], [0, 2, 2, 1, 1, 1]), NAMES)
    np.testing.assert_array_equal(found.confusion, [[1, 0, 2], [0, 2, 0], [0, 1, 0]])


def test_the_figures_are_those_of_the_predictions() -> None:
    found = evaluate(first_pixel, split([0, 0, 0, 1, 1, 2], [0, 2, 2, 1, 1, 1]), NAMES)
    assert found.accuracy == pytest.approx(3 / 6)
    assert found.recall == pytest.approx({"T-shirt/top": 1 / 3, "Trouser": 1.0, "Ankle boot": 0.0})
    assert found.precision == pytest.approx({"T-shirt/top": 1.0, "Trouser": 2 / 3, "Ankle boot": 0.0})
    assert found.macro_f1 == pytest.approx((0.5 + 0.8 + 0.0) / 3)
    assert found.report["Trouser"]["support"] == 2


def test_a_class_that_a_split_lacks_still_has_its_place() -> None:
    found = evaluate(first_pixel, split([0, 1], [0, 1]), NAMES)
    assert found.confusion.shape == (3, 3)
    assert found.recall["Ankle boot"] == 0.0


def test_more_images_than_a_batch_keep_their_order() -> None:
    predicted = np.random.default_rng(0).integers(0, 3, 2300).tolist()
    found = evaluate(first_pixel, split(predicted, predicted), NAMES)
    assert found.predicted.tolist() == predicted
    assert found.probabilities.shape == (2300, 3)
    assert found.probabilities.dtype == np.float32
    assert found.accuracy == 1.0
    assert found.ms_per_image > 0


def test_final_metrics_name_every_class_as_mlflow_allows() -> None:
    found = evaluate(first_pixel, split([0, 1, 2, 2], [0, 1, 2, 0]), NAMES)
    metrics = final_metrics(found)
    assert metrics == pytest.approx(
        {
            "objective": 0.75,
            "macro_f1": found.macro_f1,
            "ms_per_image": found.ms_per_image,
            "recall_t_shirt_top": 1.0,
            "recall_trouser": 1.0,
            "recall_ankle_boot": 0.5,
        }
    )


def test_a_larger_model_takes_longer_in_either_place() -> None:
    small, large = (build_model(Hyperparameters(filters_1=size, filters_2=size), (28, 28, 1), 10) for size in (2, 256))
    images = np.zeros((8, 28, 28, 1), dtype=np.uint8)
    first, second = interleaved_ms((small, large), images)
    third, fourth = interleaved_ms((large, small), images)
    assert 0 < first < second
    assert third > fourth > 0


def test_one_image_is_enough_to_compare_latencies() -> None:
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten()])
    assert min(interleaved_ms((model, model), np.zeros((1, 28, 28, 1), dtype=np.uint8))) > 0
