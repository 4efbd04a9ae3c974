"""A checkpoint: what a training needs to go on after an epoch, to the bit."""

import math
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
    arrays = [*checkpoint.weights, *checkpoint.optimizer, *checkpoint.best_weights]
    kinds = [(str(each.dtype), each.shape) for each in arrays]
    counts = len(checkpoint.weights), len(checkpoint.optimizer)
    header = Header(identity, environment, checkpoint.epochs, checkpoint.best_epoch, kinds, counts)
    write(path, header, [np.ascontiguousarray(each).data.cast("B") for each in arrays])


def load(path: Path) -> tuple[Header, Checkpoint]:
    """Load a checkpoint.

    Raises:
        UnusableCheckpointError: there is none, or it is torn.
    """
    header, content = read(path)
    arrays, offset = [], 0
    for dtype, shape in header.arrays:
        arrays.append(np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape))
        offset += arrays[-1].nbytes
    weights, optimizer = header.counts
    best = weights + optimizer
    groups = arrays[:weights], arrays[weights:best], arrays[best:]
    return header, Checkpoint(tuple(header.epochs), groups[0], groups[1], header.best_epoch, groups[2])
