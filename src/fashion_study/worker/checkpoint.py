"""Training that goes on from an earlier trial's model."""

import math
from dataclasses import dataclass, field

import keras
from mlflow import MlflowClient

from fashion_study.errors import DamagedModelError
from fashion_study.tracking.registry import ModelRef, Registry
from fashion_study.tracking.search import find_run
from fashion_study.training.model_file import load_model_file
from fashion_study.trial import CONTINUATION_LOST, CONTINUED, Checkpoint, Hyperparameters


@dataclass(frozen=True)
class WarmStart:
    """The number of epochs after which a training begins, and the tags of its run that say why."""

    epochs: int = 0
    tags: dict[str, str] = field(default_factory=dict)


def restore(
    client: MlflowClient, continues: Checkpoint, model: keras.Model, params: Hyperparameters, images: int
) -> WarmStart:
    """Set the weights of `model` to those that an earlier run has logged, and its optimizer's number of steps.

    The optimizer's own averages begin anew: models are stored without them. Where the earlier run or model is gone,
    or the model is damaged, nothing is changed, and the training begins with its first epoch.
    """
    try:
        run = None if continues.run_id is None else find_run(client, continues.run_id)
        if run is None:
            raise DamagedModelError("its run is gone")
        earlier = Registry(client).load(ModelRef.of_run(run), load_model_file)
    except DamagedModelError as error:
        return WarmStart(tags={CONTINUATION_LOST: f"trial {continues.number:03d}: {error}"})
    model.set_weights(earlier.get_weights())
    model.optimizer.build(model.trainable_variables)
    # The learning rate decays with the steps.
    model.optimizer.iterations.assign(continues.epochs * math.ceil(images / params.batch_size))
    return WarmStart(continues.epochs, {CONTINUED: str(continues.epochs)})
