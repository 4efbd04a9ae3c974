import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fashion_study.data.dataset import ImageShape
from fashion_study.training.figures import RIGHT, WRONG, confusion_matrix_figure, prediction_grid_figure

NAMES = ("Shirt", "Coat", "Bag")
CONFUSION = np.array([[50, 7, 0], [3, 40, 1], [0, 2, 61]])


def grid(count: int, seed: int = 0, image_shape: ImageShape = (28, 28, 1)) -> Figure:
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, count)
    predicted = np.where(random.random(count) < 0.3, (labels + 1) % 3, labels)
    probabilities = np.full((count, 3), 0.2, dtype=np.float32)
    probabilities[np.arange(count), predicted] = 0.6
    images = random.integers(0, 256, (count, *image_shape), dtype=np.uint8)
    return prediction_grid_figure(images, labels, predicted, probabilities, NAMES, seed)


def captions(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_confusion_matrix_has_the_true_classes_in_its_rows() -> None:
    axes = confusion_matrix_figure(CONFUSION, NAMES, "a title").axes[0]
    assert [text.get_text() for text in axes.texts] == ["50", "7", "0", "3", "40", "1", "0", "2", "61"]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(NAMES)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(NAMES)
    assert (axes.get_ylabel(), axes.get_xlabel(), axes.get_title()) == ("true", "predicted", "a title")
    assert axes.yaxis_inverted(), "the first row belongs at the top"


def test_the_grid_names_both_classes_and_marks_mistakes() -> None:
    figure = grid(200)
    assert len(captions(figure)) == 25
    for text in figure.axes[0].texts:
        true, predicted = (line.split(": ")[1] for line in text.get_text().splitlines())
        guess, certainty = predicted.rsplit(" ", 1)
        assert {true, guess} <= set(NAMES)
        assert certainty == "60%"
        assert to_hex(text.get_color()) == (RIGHT if true == guess else WRONG)


def test_the_grid_counts_right_and_wrong_among_what_it_shows() -> None:
    figure = grid(200)
    wrong = sum(to_hex(text.get_color()) == WRONG for text in figure.axes[0].texts)
    assert 0 < wrong < 25
    assert figure.axes[0].get_title() == f"25 images drawn at random: {25 - wrong} right, {wrong} wrong"


def test_the_seed_decides_which_images_are_drawn() -> None:
    assert captions(grid(200, seed=1)) == captions(grid(200, seed=1))
    assert captions(grid(200, seed=1)) != captions(grid(200, seed=2))


def test_a_split_of_few_images_is_shown_whole() -> None:
    assert len(captions(grid(7))) == 7


@pytest.mark.parametrize("image_shape", [(28, 28, 1), (32, 40, 3), (40, 20, 1)])
def test_the_grid_shows_images_of_any_shape_and_colour(image_shape: ImageShape) -> None:
    figure = grid(200, image_shape=image_shape)
    canvas = figure.axes[0].images[0].get_array()
    assert canvas is not None
    height, width, channels = image_shape
    assert canvas.shape[2:] == ((3,) if channels == 3 else ())
    # The background is white: 0 on the scale of the grey images, which are drawn dark on light.
    drawn = canvas.reshape(*canvas.shape[:2], -1) != (255 if channels == 3 else 0)
    assert drawn.any(axis=2).sum() == pytest.approx(25 * height * width, rel=0.02)
    figure.canvas.draw()


def test_no_figure_stays_behind() -> None:
    grid(30)
    confusion_matrix_figure(CONFUSION, NAMES, "")
    assert plt.get_fignums() == []
