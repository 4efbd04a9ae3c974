"""The blog post's network and its confusion matrix, as the peers' users would write them in stock Keras."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.peers.task import Split


def build_network(params: Mapping[str, Any], classes: int, precision: str | None = None) -> keras.Model:
    """Build and compile the network of a trial, in float32 unless `precision` is bfloat16."""
    if precision == "bfloat16":
        # Here, for each network: `clear_session`, which KerasTuner calls too, forgets the policy.
        keras.config.set_dtype_policy("mixed_bfloat16")
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(params["filters_1"], 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(params["filters_2"], 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(params["filters_3"], 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(classes, activation="softmax", dtype="float32"),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.RMSprop(params["learning_rate"]),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def confusion_figure(model: keras.Model, validation: "Split", class_names: Sequence[str]) -> "Figure":
    """Predict the validation images and draw the confusion matrix, rows the truth."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    images, labels = validation
    predicted = model.predict(images, verbose=0).argmax(axis=1)
    figure = Figure(figsize=(8, 7))
    ConfusionMatrixDisplay.from_predictions(
        labels,
        predicted,
        labels=range(len(class_names)),
        display_labels=class_names,
        xticks_rotation="vertical",
        ax=figure.subplots(),
    )
    figure.tight_layout()
    return figure
