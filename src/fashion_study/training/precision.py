"""The probe for the precision that trains faster on this machine."""

import math
import time
from statistics import median

import keras
import numpy as np

from fashion_study.data.dataset import ImageShape
from fashion_study.training.model import build_model
from fashion_study.trial import Hyperparameters, Precision, ProbeResult

# Small, since a processor without bfloat16 instructions can need ten times as long for a step.
BATCH = 64
STEPS = 8


def probe(image_shape: ImageShape, classes: int, params: Hyperparameters | None = None) -> ProbeResult:
    """Train the model for some steps on random pixels in each precision, and choose the faster one.

    bfloat16 is given up after the first step that takes twice as long as a float32 step. float16 is no
    candidate: it is slower on every processor, and its small numbers vanish without loss scaling.
    """
    params = params or Hyperparameters()
    float32 = _step_seconds(build_model(params, image_shape, classes), give_up_after=math.inf)
    bfloat16 = _step_seconds(build_model(params, image_shape, classes, Precision.BFLOAT16), give_up_after=2 * float32)
    return ProbeResult(
        precision=Precision.BFLOAT16 if bfloat16 < float32 else Precision.FLOAT32,
        images_per_second={
            Precision.FLOAT32.value: BATCH / float32,
            Precision.BFLOAT16.value: BATCH / bfloat16,
        },
    )


def _step_seconds(model: keras.Model, give_up_after: float) -> float:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (BATCH, *model.input_shape[1:]), dtype=np.uint8)
    labels = random.integers(0, model.output_shape[-1], BATCH)
    model.train_on_batch(images, labels)  # Traces the graph; no measure of a step.
    seconds: list[float] = []
    while len(seconds) < STEPS and (not seconds or seconds[-1] <= give_up_after):
        started = time.perf_counter()
        model.train_on_batch(images, labels)
        seconds.append(time.perf_counter() - started)
    return median(seconds)
