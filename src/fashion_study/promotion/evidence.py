"""The evidence about two models: the gates' results, from verified files and counted readings of the holdout."""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from fashion_study.data.catalog import describe, load_dataset
from fashion_study.data.dataset import Split
from fashion_study.data.holdout import load_holdout
from fashion_study.errors import DamagedModelError, StoreError
from fashion_study.promotion.decision import Contender, Decision, HoldoutReading
from fashion_study.promotion.gates import Frozen, GateResult, Gates, Paired
from fashion_study.tracking.registry import ModelRef, Registry
from fashion_study.tracking.search import read_artifact
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


class Examiner:
    """The comparison of contenders on one data set."""

    def __init__(self, registry: Registry, source: DataSource, gates: Gates, readings_run: str) -> None:
        self._registry = registry
        self._client = registry.client
        self._source = source
        self._gates = gates
        self._readings_run = readings_run
        self._class_names = describe(source.name).class_names

    def judge(self, decision: Decision) -> Decision:
        """Load both models, ask every gate, and return the decision with its evidence.

        The holdout is read where the predictions of one of them are not kept yet, and counted before it is read.

        Raises:
            DamagedModelError: a file is not the registered one, or not one that this project saves.
        """
        challenger, reference = decision.challenger, decision.reference
        assert reference is not None
        ours, theirs = _model_ref(challenger), _model_ref(reference)
        model, other = (load_verified(self._registry, one, self._source.name) for one in (ours, theirs))
        signature = _signature(self._registry, ours, model, self._registry.signature(theirs))
        latency = self._latency(model, other)
        paired, holdout = self._on_holdout([(challenger, model), (reference, other)])
        fidelity = self._fidelity(challenger, model, paired)
        counted = [int(one.count_params()) for one in (model, other)]
        recalls = tuple(self._gates.class_recalls(paired, self._class_names))
        right = [int((paired.labels == predicted).sum()) for predicted in (paired.challenger, paired.champion)]
        return decision.judged(
            (
                self._gates.accuracy(paired, holdout.readings),
                self._gates.recall(recalls),
                self._gates.parameters(counted[0]),
                latency,
                fidelity,
                signature,
            ),
            challenger=challenger.model_copy(update={"right": right[0], "parameter_count": counted[0]}),
            reference=reference.model_copy(update={"right": right[1], "parameter_count": counted[1]}),
            recalls=recalls,
            holdout=holdout,
        )

    def _latency(self, model: "keras.Model", other: "keras.Model") -> GateResult:
        from fashion_study.training.evaluation import interleaved_ms

        # Validation images: the holdout is not read to look at a clock.
        challenger_ms, reference_ms = interleaved_ms((model, other), self._validation.images)
        return self._gates.latency(challenger_ms, reference_ms)

    def _fidelity(self, challenger: Contender, model: "keras.Model", paired: Paired) -> GateResult:
        """Compare with the confusion matrix of the run: of validation images, or of the holdout for a baseline."""
        from sklearn.metrics import confusion_matrix

        logged = self._logged_confusion(challenger.run_id)
        if self._client.get_run(challenger.run_id).data.tags.get("kind") != "baseline":
            found = self._evaluate(model, self._validation).confusion
            return self._gates.fidelity(logged, found, "validation")
        found = confusion_matrix(paired.labels, paired.challenger, labels=range(len(self._class_names)))
        answer = self._gates.fidelity(logged, found, "holdout")
        said = f"Validation images: not logged, since a baseline trains on them. Holdout: {answer.sentence}"
        return answer.model_copy(update={"sentence": said})

    def _evaluate(self, model: "keras.Model", split: Split) -> "Evaluation":
        from fashion_study.training.evaluation import evaluate

        return evaluate(model, split, self._class_names)

    @cached_property
    def _validation(self) -> Split:
        return load_dataset(self._source).validation

    def _logged_confusion(self, run_id: str) -> npt.NDArray[np.int64] | None:
        content = read_artifact(self._client, run_id, "confusion_matrix.json")
        try:
            counts = np.asarray(json.loads(content or "{}").get("counts"))
        except (ValueError, AttributeError):
            return None
        return counts.astype(np.int64) if counts.ndim == 2 and counts.dtype.kind == "i" else None

    def _on_holdout(self, models: list[tuple[Contender, "keras.Model"]]) -> tuple[Paired, HoldoutReading]:
        predictions = [self._kept(contender) for contender, _ in models]
        readings, read_now = self._readings(), _labels(predictions) is None
        if read_now:
            readings += 1
            # Counted before it is read, so that no reading escapes the count.
            self._client.set_tag(self._readings_run, READINGS, readings)
            holdout = load_holdout(self._source)
            predictions = [
                self._predict(contender, model, holdout)
                if kept is None or _labels([kept]) != _tuple(holdout.labels)
                else kept
                for kept, (contender, model) in zip(predictions, models, strict=True)
            ]
        labels = np.asarray(_labels(predictions), dtype=np.int64)
        challenger, champion = (np.asarray(found and found.predicted, dtype=np.int64) for found in predictions)
        reading = HoldoutReading(
            images=len(labels), readings=max(1, readings), counted_on_run=self._readings_run, read_now=read_now
        )
        return Paired(labels, challenger, champion), reading

    def _readings(self) -> int:
        """Return how often the holdout was read for the study so far; a reproduction counts its own in a metric."""
        data = self._client.get_run(self._readings_run).data
        counted = data.tags.get(READINGS, f"{data.metrics.get(READINGS, 0):.0f}")
        if not counted.isdecimal():
            raise StoreError(
                f"The run {self._readings_run} has the tag {READINGS} = {counted!r}. Expected how often the holdout "
                "was read for the study. Set it right in MLflow: the limit of the accuracy gate depends on it."
            )
        return int(counted)

    def _kept(self, contender: Contender) -> _Predictions | None:
        """Return the kept predictions of a model where they are of this very file and these very images."""
        try:
            found = _Predictions.model_validate_json(read_artifact(self._client, contender.run_id, PREDICTIONS) or "")
        except ValidationError:
            return None
        is_of_this = (found.model_sha256, found.data_digest) == (contender.sha256, self._source.digest)
        is_whole = 0 < len(found.labels) == len(found.predicted)
        classes = range(len(self._class_names))
        return found if is_of_this and is_whole and {*found.labels, *found.predicted} <= {*classes} else None

    def _predict(self, contender: Contender, model: "keras.Model", holdout: Split) -> _Predictions:
        made = _Predictions(
            model_sha256=contender.sha256,
            data_digest=self._source.digest,
            labels=_tuple(holdout.labels),
            predicted=_tuple(self._evaluate(model, holdout).predicted),
        )
        self._client.log_text(contender.run_id, made.model_dump_json(), PREDICTIONS)
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


def _model_ref(contender: Contender) -> ModelRef:
    return ModelRef(contender.model_uri, contender.sha256, contender.run_id, contender.title)


def _signature(registry: Registry, challenger: ModelRef, model: "keras.Model", expected: str | None) -> GateResult:
    takes, gives = ((-1, *shape[1:]) for shape in (model.input_shape, model.output_shape))
    loaded = f"Tensor('float32', {takes}) -> Tensor('float32', {gives})"
    return Gates.signature(registry.signature(challenger), loaded, expected)


def _labels(predictions: Sequence[_Predictions | None]) -> tuple[int, ...] | None:
    """Return the labels that all predictions share, None where some are missing or differ."""
    found = {None if one is None else one.labels for one in predictions}
    return found.pop() if len(found) == 1 else None


def _tuple(numbers: npt.NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(numbers.tolist())
