"""Hand-made facts of a study: as many trials as a page must bear, trained by nobody."""

import shlex
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from fashion_study.data.catalog import describe
from fashion_study.report.facts import ConfusedPair, Finals, ModelFacts, Reference, Size, StudyFacts
from fashion_study.space.file import load_space
from fashion_study.store.trials import TrialRecord
from fashion_study.study.finalists import Finalist
from fashion_study.study.leaderboard import rank
from fashion_study.trial import FailReason, ParamValue, TrialState

CLASSES = describe("fashion-mnist").class_names
SPACE = load_space("baseline")
BEGAN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def params(**changes: ParamValue) -> dict[str, ParamValue]:
    return {**SPACE.baseline, **changes}


def record(number: int, state: TrialState, values: list[float], **changes: ParamValue) -> TrialRecord:
    """Make a trial with the validation accuracies `values`, one an epoch."""
    objective = values[-1] if state is TrialState.COMPLETE else None
    reason = FailReason.DIVERGED if state is TrialState.FAILED else None
    seconds = None if state in (TrialState.RUNNING, TrialState.WAITING) else 12.5 * len(values)
    curve = dict(enumerate(values, start=1))
    return TrialRecord(number, state, params(**changes), 1, f"run-{number}", objective, curve, reason, seconds)


def records() -> tuple[TrialRecord, ...]:
    """Make a baseline, two better trials, pruned ones, one of each other state; ranked."""
    rng = np.random.default_rng(0)
    climbing = [0.7, 0.8, 0.84, 0.85, 0.852]
    made = [
        record(0, TrialState.COMPLETE, climbing, epochs=5),
        record(1, TrialState.COMPLETE, [value + 0.03 for value in climbing], epochs=5, filters_1=40),
        record(
            2, TrialState.COMPLETE, [value + 0.04 for value in climbing], epochs=5, filters_1=64, learning_rate=3e-3
        ),
        *(
            record(number, TrialState.PRUNED, list(rng.uniform(0.6, 0.8, size=1 + number % 3)), epochs=15)
            for number in range(3, 60)
        ),
        record(60, TrialState.FAILED, [0.1], epochs=5),
        record(61, TrialState.RUNNING, [0.7], epochs=5),
        record(62, TrialState.WAITING, [], epochs=5),
    ]
    return rank(made)


def model(trial: int, accuracy: float, mistakes: frozenset[int] | None = None, **changes: Any) -> ModelFacts:
    """Make a model that is right for about `accuracy` of 1,000 images of each class."""
    right = round(1000 * accuracy)
    confusion = np.diag(np.full(len(CLASSES), right)) + np.roll(np.diag(np.full(len(CLASSES), 1000 - right)), 1, axis=1)
    metrics = {"macro_f1": accuracy, "parameter_count": 93_322.0, "train_seconds": 210.0, "ms_per_image": 0.21}
    pairs = tuple(
        ConfusedPair(true, CLASSES[(place + 1) % len(CLASSES)], 1000 - right, 1 - accuracy, tuple(range(6)))
        for place, true in enumerate(CLASSES)
    )
    made = ModelFacts(f"run-{trial}", trial, None, metrics, CLASSES, confusion, mistakes, pairs)
    return ModelFacts(**{**vars(made), **changes})


def finals() -> Finals:
    return Finals(
        finalists=(
            Finalist(2, params(filters_1=64), (0.889, 0.891, 0.89), ("a", "b", "c")),
            Finalist(1, params(filters_1=40), (0.881, 0.883), ("d", "e")),
        ),
        winner=2,
        version_run="c",
        note="3 finalists with 3 repeats do not fit the time left",
    )


def facts(**changes: Any) -> StudyFacts:
    """Make the facts of a study that has ended and has everything a page can show."""
    pixels: dict[int, npt.NDArray[np.uint8]] = {index: np.full((28, 28, 1), 40 * index, np.uint8) for index in range(6)}
    baseline, best = model(0, 0.852), model(2, 0.89)
    made: dict[str, Any] = {
        "name": "fashion-mnist-baseline",
        "run_id": "0123456789abcdef0123456789abcdef",
        "run_status": "FINISHED",
        "began": BEGAN,
        "written": BEGAN + timedelta(hours=2),
        "ended": BEGAN + timedelta(hours=1),
        "space": SPACE,
        "records": records(),
        "trials": 61,
        "settings": {
            "command": "python -m experiments.run_study --trials 61 --seed 0",
            "sampler": "tpe",
            "pruner": "successive-halving",
            "workers": "2",
            "host": "a-machine-with-a-rather-long-name.example.org",
            "code_version": "0.1.0",
            "mlflow.source.git.commit": "0123456789abcdef+",
        },
        "asked": {"dataset": "fashion-mnist", "seed": "0", "precision": "float32", "data_digest": 64 * "a"},
        "image_counts": {"training": 50_000, "validation": 10_000},
        "best": best,
        "baseline": baseline,
        "finals": finals(),
        "reference": Reference(baseline, "the baseline trial (000)", "no model of this data set is the champion yet"),
        "sizes": {0: Size(93_322, 0.12), 1: Size(99_001.0, 0.13), 2: Size(134_178, 0.21)},
        "importances": {"learning_rate": 0.7, "filters_1": 0.2, "epochs": 0.1},
        "pixels": pixels,
    }
    return StudyFacts(**{**made, **changes})


def hostile_facts(text: str) -> StudyFacts:
    """Make the facts of a study with `text` wherever a store has a text of its own."""
    plain = facts()
    command = shlex.join(["python", "-m", "experiments.run_study", "--trials", "4", text])
    best = model(2, 0.89, classes=(text, *CLASSES[1:]), pairs=(ConfusedPair(text, text, 3, 0.1, (0, 1)),))
    return facts(
        name=text,
        run_id=text,
        settings={**dict.fromkeys(plain.settings, text), "command": command, "workers": "2"},
        asked=dict.fromkeys(plain.asked, text),
        image_counts={text: 3},
        records=(record(70, TrialState.COMPLETE, [0.8], filters_1=text), *plain.records),
        best=best,
        baseline=model(0, 0.852, classes=best.classes),
        finals=replace(finals(), note=text),
        reference=Reference(best, text, text),
        importances={text: 0.9, "epochs": 0.1},
        pixels_missing=text,
    )
