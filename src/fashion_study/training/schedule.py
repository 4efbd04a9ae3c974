"""The learning rate of each step."""

import math
from typing import Any

import keras
import tensorflow as tf

from fashion_study.trial import Hyperparameters


class Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """The learning rate over a training of `params.epochs` epochs on so many images.

    With `inverse_time` it is `learning_rate` / (1 + `decay` * step), which Keras 2 called `decay`. With any other it
    rises evenly to `learning_rate` over the first `warmup` of all steps, and then stays (`constant`), falls evenly to
    zero (`one_cycle`; Smith and Topin 2018, arXiv 1708.07120) or along half a wave of the cosine (`cosine`; Loshchilov
    and Hutter 2017, arXiv 1608.03983).
    """

    def __init__(self, params: Hyperparameters, images: int | None) -> None:
        super().__init__()
        self._params = params
        if images is None and params.schedule != "inverse_time":
            raise ValueError(f"the schedule {params.schedule} needs the number of images")
        self._steps = params.epochs * math.ceil((images or 1) / params.batch_size)
        self._rising = round(params.warmup * self._steps)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Return the rate of a step, the first of which is 0."""
        params, by_time = self._params, keras.optimizers.schedules.InverseTimeDecay
        if params.schedule == "inverse_time":
            return by_time(params.learning_rate, decay_steps=1, decay_rate=params.decay)(step)
        step = tf.cast(step, tf.float32)
        # A first step at zero would change nothing.
        share = (step + 1) / self._rising if self._rising else tf.ones_like(step)
        return params.learning_rate * tf.minimum(share, self._share_left(step))

    def _share_left(self, step: tf.Tensor) -> tf.Tensor:
        done = tf.clip_by_value((step - self._rising) / (self._steps - self._rising), 0.0, 1.0)
        if self._params.schedule == "one_cycle":
            return 1 - done
        return (1 + tf.cos(math.pi * done)) / 2 if self._params.schedule == "cosine" else tf.ones_like(done)

    def get_config(self) -> dict[str, Any]:
        """Return what Keras would save with an optimizer; a logged model has none."""
        return {"params": self._params.model_dump(), "steps": self._steps}
