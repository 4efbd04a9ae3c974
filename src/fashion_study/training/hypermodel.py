"""The shared builder for people who use KerasTuner's own tuners."""

from typing import Any

import keras
import keras_tuner

from fashion_study.data.catalog import PREFERRED
from fashion_study.data.dataset import ImageShape
from fashion_study.errors import BadInputError
from fashion_study.space.keras_tuner import declare, values_within
from fashion_study.space.space import SearchSpace
from fashion_study.text import shown_list
from fashion_study.training.model import build_model
from fashion_study.trial import Hyperparameters

# What is done by `fit` and the worker, around the compiled model.
OF_STUDIES = ("averaging", "flip", "shift", "erasing", "views")


class FashionHyperModel(keras_tuner.HyperModel):
    """A search space and the shared builder for any of KerasTuner's tuners, with batch size and epochs.

    Each parameter's default is the baseline's value. Images are raw pixels (n, *image_shape) from 0 to 255, labels
    integers below `classes`. A schedule over the whole training needs to know how many `images` are to train a model,
    in the space's epochs. Arguments that a tuner or `tuner.search` passes to `fit`, such as Hyperband's epochs, take
    precedence over the space's.

    Raises:
        BadInputError: the space asks for something that only this project's own training does.
    """

    def __init__(
        self,
        space: SearchSpace,
        classes: int = len(PREFERRED.class_names),
        image_shape: ImageShape = PREFERRED.image_shape,
        images: int | None = None,
    ) -> None:
        super().__init__(name=f"fashion_{space.name}")
        off = Hyperparameters().model_dump()
        asked = tuple(
            name for name in OF_STUDIES if name in space.parameters or space.fixed.get(name, off[name]) != off[name]
        )
        if asked:
            raise BadInputError(
                f"Space {space.name!r} has {shown_list(asked)}, part of a study's training and not of a model that "
                "another tuner fits. Expected a space without; or python -m experiments.run_study."
            )
        self._space = space
        self._classes = classes
        self._image_shape = image_shape
        self._images = images

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Declare the space and build the compiled model of one of its points."""
        model = build_model(self._hyperparameters(hp), self._image_shape, self._classes, images=self._images)
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
