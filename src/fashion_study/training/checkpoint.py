"""A checkpoint: what a training needs to go on after an epoch, to the bit."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from fashion_study.store.checkpoints import Header, UnusableCheckpointError, read, write
from fashion_study.trial import Epoch

Arrays = list[npt.NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """A training after an epoch: its figures so far, its variables, and the weights after the best epoch.

    Nothing random is kept: every draw of an epoch follows from the trial's seed and the epoch's number.
    """

    epochs: tuple[Epoch, ...]
    weights: Arrays
    optimizer: Arrays
    best_epoch: int
    best_weights: Arrays

    @property
    def epoch(self) -> int:
        """Return the number of the last epoch."""
        return self.epochs[-1].epoch

    def restore(self, model: keras.Model) -> None:
        """Give a compiled model the weights and the optimizer's variables.

        Raises:
            UnusableCheckpointError: they are of another model; it is left as it was.
        """
        model.optimizer.build(model.trainable_variables)
        variables = [*model.weights, *model.optimizer.variables]
        values = [*self.weights, *self.optimizer]
        found, expected = ([(tuple(each.shape), str(each.dtype)) for each in side] for side in (values, variables))
        if found != expected or [each.shape for each in self.best_weights] != [each.shape for each in self.weights]:
            raise UnusableCheckpointError("the checkpoint has variables of other shapes or types than the model")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def save(path: Path, checkpoint: Checkpoint, identity: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Write a checkpoint in the place of the one before."""
    groups = {"weights": checkpoint.weights, "optimizer": checkpoint.optimizer, "best": checkpoint.best_weights}
    arrays = io.BytesIO()
    named: dict[str, Any] = {f"{name}-{i}": each for name, group in groups.items() for i, each in enumerate(group)}
    np.savez(arrays, **named)
    header = Header(identity, environment, checkpoint.epochs, checkpoint.best_epoch)
    write(path, header, arrays.getbuffer())


def load(path: Path) -> tuple[Header, Checkpoint]:
    """Load a checkpoint.

    Raises:
        UnusableCheckpointError: there is none, or it is torn.
    """
    header, content = read(path)
    groups: dict[str, Arrays] = {"weights": [], "optimizer": [], "best": []}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for name in arrays.files:
            groups[name.partition("-")[0]].append(arrays[name])
    return header, Checkpoint(
        tuple(header.epochs), groups["weights"], groups["optimizer"], header.best_epoch, groups["best"]
    )
