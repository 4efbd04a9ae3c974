"""Train the blog's model as a user would, with stock Keras alone, and print the images per second."""

import sys
import time
from statistics import median
from typing import Any


def main() -> None:
    """Read batch size, epochs, images, precision and threads from the command line; print one number."""
    batch_size, epochs, images = map(int, sys.argv[1:4])
    precision, threads = sys.argv[4], int(sys.argv[5])

    import keras
    import tensorflow as tf
    from keras import layers

    from fashion_study.datasets import load_study_data, locate

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    data = load_study_data(locate("fashion-mnist", None), images)

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no annotations.
        def __init__(self) -> None:
            super().__init__()
            self.seconds: list[float] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = time.perf_counter()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.ended = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds.append(self.ended - self.began)

    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax", dtype="float32"),
        ]
    )
    optimizer = keras.optimizers.RMSprop(1e-4)
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    clock = Clock()
    model.fit(
        data.train.images.astype("float32"),
        data.train.labels,
        batch_size=batch_size,
        epochs=epochs,
        validation_data=(data.validation.images.astype("float32"), data.validation.labels),
        callbacks=[clock],
        verbose=0,
    )
    print(images / median(clock.seconds[1:]))


if __name__ == "__main__":
    main()
