"""The shared builder for people who use KerasTuner's own tuners."""

from typing import Any

import keras
import keras_tuner

from fashion_study.space.keras_tuner import declare, values_within
from fashion_study.space.space import SearchSpace
from fashion_study.training.model import build_model
from fashion_study.trial import Hyperparameters


class FashionHyperModel(keras_tuner.HyperModel):
    """Offer a search space and the shared builder to any tuner of KerasTuner's: batch size and epochs included.

    Each parameter's default is the baseline's value. Images are raw pixels (n, 28, 28, 1) from 0 to 255, labels whole
    numbers below `classes`. What a tuner or `tuner.search` passes to `fit`, as Hyperband does with its epochs, is taken
    rather than the space's.
    """

    def __init__(self, space: SearchSpace, classes: int = 10) -> None:
        super().__init__(name=f"fashion_{space.name}")
        self._space = space
        self._classes = classes

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Declare the space and build the compiled model of one of its points."""
        model = build_model(self._hyperparameters(hp), classes=self._classes)
        # A tuner loads an earlier trial's weights into it, which it has stored with their optimizer's state.
        model.optimizer.build(model.trainable_variables)
        return model

    def fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        """Train with the batch size and the epochs of the same point; return Keras's history."""
        params = self._hyperparameters(hp)
        return model.fit(*args, **{"batch_size": params.batch_size, "epochs": params.epochs} | kwargs)

    def _hyperparameters(self, hp: keras_tuner.HyperParameters) -> Hyperparameters:
        declare(hp, self._space)
        return self._space.hyperparameters(values_within(self._space, hp.values))
