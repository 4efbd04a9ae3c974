"""The evidence about two models: the gates' results, from verified files and counted readings of the holdout."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from fashion_study.data.catalog import describe, load_dataset
from fashion_study.data.dataset import Dataset, Split
from fashion_study.data.holdout import load_holdout
from fashion_study.errors import DamagedModelError, StoreError
from fashion_study.libraries import import_without_stderr
from fashion_study.promotion.decision import Contender, Decision, HoldoutReading
from fashion_study.promotion.gates import Frozen, GateResult, Gates, Paired
from fashion_study.tracking.registry import ModelRef, Registry
from fashion_study.tracking.search import find_run, read_artifact
from fashion_study.trial import DataSource

if TYPE_CHECKING:
    import keras

    from fashion_study.training.evaluation import Evaluation

# On the run that a model comes from, so that a later promotion does not read the holdout for it again.
PREDICTIONS = "holdout_predictions.json"
# On the run of the study: how often the holdout was read to judge one of its challengers.
READINGS = "holdout_readings"


class _Predictions(Frozen):
    """A model's predictions for the holdout, with the labels, so that nothing has to be read again."""

    model_sha256: str
    data_digest: str
    labels: tuple[int, ...]
    predicted: tuple[int, ...]


@dataclass
class Examiner:
    """The comparison of contenders on one data set; the run `readings_run` counts the readings of its holdout."""

    registry: Registry
    source: DataSource
    gates: Gates
    readings_run: str

    def judge(self, decision: Decision) -> Decision:
        """Load both models, ask every gate, and return the decision with its evidence.

        The holdout is read where the predictions of one of them are not kept yet, and counted before it is read.

        Raises:
            DamagedModelError: a file is not the registered one, or not one that this project saves.
        """
        challenger, reference = decision.challenger, decision.reference
        assert reference is not None
        ours, theirs = _model_ref(challenger), _model_ref(reference)
        one_thread = _on_one_thread()
        model, other = (load_verified(self.registry, one, self.source.name) for one in (ours, theirs))
        # Not before a model is loaded, which imports Keras without the user's settings of it.
        from fashion_study.training.evaluation import interleaved_ms

        signature = _signature(self.registry, ours, model, self.registry.signature(theirs))
        # Validation images: the holdout is not read to look at a clock.
        milliseconds = interleaved_ms((model, other), self._data.validation.images)
        paired, holdout = self._on_holdout([(challenger, model), (reference, other)])
        fidelity = self._fidelity(challenger, model, paired)
        counted = [int(one.count_params()) for one in (model, other)]
        recalls = tuple(self.gates.class_recalls(paired, self._data.class_names))
        right = [int((paired.labels == predicted).sum()) for predicted in (paired.challenger, paired.champion)]
        return decision.judged(
            (
                self.gates.accuracy(paired, holdout.readings),
                self.gates.recall(recalls),
                self.gates.parameters(counted[0]),
                self.gates.latency(*milliseconds, one_thread=one_thread),
                fidelity,
                signature,
            ),
            challenger=challenger.model_copy(update={"right": right[0], "parameter_count": counted[0]}),
            reference=reference.model_copy(update={"right": right[1], "parameter_count": counted[1]}),
            recalls=recalls,
            holdout=holdout,
        )

    def _fidelity(self, challenger: Contender, model: "keras.Model", paired: Paired) -> GateResult:
        """Compare with the confusion matrix of the run: of validation images, or of the holdout for a baseline."""
        from sklearn.metrics import confusion_matrix

        logged = self._logged_confusion(challenger.run_id)
        if self.registry.client.get_run(challenger.run_id).data.tags.get("kind") != "baseline":
            found = self._evaluate(model, self._data.validation).confusion
            return self.gates.fidelity(logged, found, "validation")
        found = confusion_matrix(paired.labels, paired.challenger, labels=range(len(self._data.class_names)))
        answer = self.gates.fidelity(logged, found, "holdout")
        said = f"Validation images: not logged, since a baseline trains on them. Holdout: {answer.sentence}"
        return answer.model_copy(update={"sentence": said})

    def _evaluate(self, model: "keras.Model", split: Split) -> "Evaluation":
        from fashion_study.training.evaluation import evaluate

        return evaluate(model, split, self._data.class_names)

    @cached_property
    def _data(self) -> Dataset:
        return load_dataset(self.source)

    def _logged_confusion(self, run_id: str) -> npt.NDArray[np.int64] | None:
        content = read_artifact(self.registry.client, run_id, "confusion_matrix.json")
        try:
            counts = np.asarray(json.loads(content or "{}").get("counts"))
        except (ValueError, AttributeError):
            return None
        return counts.astype(np.int64) if counts.ndim == 2 and counts.dtype.kind == "i" else None

    def _on_holdout(self, models: list[tuple[Contender, "keras.Model"]]) -> tuple[Paired, HoldoutReading]:
        predictions = [self._kept(contender) for contender, _ in models]
        labels = {None if one is None else one.labels for one in predictions}
        readings, read_now = self._readings(), None in labels or len(labels) > 1
        if read_now:
            readings += 1
            # Counted before it is read, so that no reading escapes the count.
            self.registry.client.set_tag(self.readings_run, READINGS, readings)
            holdout = load_holdout(self.source)
            predictions = [
                kept if kept and kept.labels == tuple(holdout.labels) else self._predict(contender, model, holdout)
                for kept, (contender, model) in zip(predictions, models, strict=True)
            ]
        first, second = (one for one in predictions if one is not None)
        paired = Paired(*(np.asarray(numbers) for numbers in (first.labels, first.predicted, second.predicted)))
        reading = HoldoutReading(
            images=len(first.labels), readings=max(1, readings), counted_on_run=self.readings_run, read_now=read_now
        )
        return paired, reading

    def _readings(self) -> int:
        """Return how often the holdout was read for the study so far; a reproduction counts its own in a metric."""
        data = self.registry.client.get_run(self.readings_run).data
        counted = data.tags.get(READINGS, f"{data.metrics.get(READINGS, 0):.0f}")
        if not counted.isdecimal():
            raise StoreError(
                f"The run {self.readings_run} has the tag {READINGS} = {counted!r}. Expected how often the holdout "
                "was read for the study. Set it right in MLflow: the limit of the accuracy gate depends on it."
            )
        return int(counted)

    def _kept(self, contender: Contender) -> _Predictions | None:
        """Return the kept predictions of a model where they are of this very file and these very images."""
        try:
            text = read_artifact(self.registry.client, contender.run_id, PREDICTIONS)
            found = _Predictions.model_validate_json(text or "")
        except ValidationError:
            return None
        is_of_this = (found.model_sha256, found.data_digest) == (contender.sha256, self.source.digest)
        is_whole = 0 < len(found.labels) == len(found.predicted)
        classes = {*range(len(self._data.class_names))}
        return found if is_of_this and is_whole and {*found.labels, *found.predicted} <= classes else None

    def _predict(self, contender: Contender, model: "keras.Model", holdout: Split) -> _Predictions:
        made = _Predictions(
            model_sha256=contender.sha256,
            data_digest=self.source.digest,
            labels=tuple(holdout.labels),
            predicted=tuple(self._evaluate(model, holdout).predicted),
        )
        if find_run(self.registry.client, contender.run_id) is not None:  # Else they are made anew each time.
            self.registry.client.log_text(contender.run_id, made.model_dump_json(), PREDICTIONS)
        return made


def judge_signature(registry: Registry, decision: Decision) -> Decision:
    """Load the challenger alone, and ask the one gate that no force skips; no image is read.

    Raises:
        DamagedModelError: the challenger's file is not the registered one, or not one that this project saves.
    """
    try:
        expected = None if decision.reference is None else registry.signature(_model_ref(decision.reference))
    except DamagedModelError:
        # A damaged champion must not keep a sound model from taking its place.
        expected = None
    challenger = _model_ref(decision.challenger)
    model = load_verified(registry, challenger, decision.dataset)
    return decision.judged((_signature(registry, challenger, model, expected),))


def load_verified(registry: Registry, model: ModelRef, dataset: str) -> "keras.Model":
    """Load a stored model for the images of a data set.

    Raises:
        DamagedModelError: its file is not the registered one, not one that this project saves, or for other images.
    """
    from fashion_study.training.model_file import load_model_file

    loaded = registry.load(model, load_model_file)
    if loaded.input_shape[1:] != (expected := describe(dataset).image_shape):
        raise DamagedModelError(
            f"{model} takes images of {loaded.input_shape[1:]}; those of {dataset} have {expected}. "
            "Expected a model that was trained on it."
        )
    return loaded


def _on_one_thread() -> bool:
    """Let TensorFlow predict on one thread from here on; return whether it does."""
    import_without_stderr("fashion_study.training.fit")
    from fashion_study.training.fit import configure

    try:
        configure(threads=1)
    except RuntimeError:
        return False  # It has begun.
    return True


def _model_ref(contender: Contender) -> ModelRef:
    return ModelRef(contender.model_uri, contender.sha256, contender.run_id, contender.title)


def _signature(registry: Registry, challenger: ModelRef, model: "keras.Model", expected: str | None) -> GateResult:
    takes, gives = ((-1, *shape[1:]) for shape in (model.input_shape, model.output_shape))
    loaded = f"Tensor('float32', {takes}) -> Tensor('float32', {gives})"
    return Gates.signature(registry.signature(challenger), loaded, expected)
