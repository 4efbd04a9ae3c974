"""The plan of a study: its config with everything in it looked up and checked, and what its run shows of it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from fashion_study.config import StudyConfig
from fashion_study.data.catalog import PREFERRED, check_limit, locate
from fashion_study.errors import BadInputError
from fashion_study.executors.local import default_workers
from fashion_study.space.space import SearchSpace
from fashion_study.store.store import open_store
from fashion_study.store.tracking_uri import check_reachable
from fashion_study.trial import TRAINING_VERSION, DataSource, Hyperparameters, ParamValue, Precision

if TYPE_CHECKING:
    from fashion_study.tracking.runs import StudyMetadata

Fingerprint = dict[str, str | int | None]
# Fields of a config that cannot change when a study is resumed; all others are settings, but for the places.
FIXED = {"space", "dataset", "study", "seed", "limit_train", "precision", "try_points"}
# A setting that is None, in words.
LEFT_OUT = {"finalists": "default", "repeats": "default", "keep_models": "all"}
# Options that say where things are on this machine.
PLACES = {"store", "study_db", "data_dir", "address"}


@dataclass(frozen=True)
class Plan:
    """What a study is about to do; without a number of `workers` there are as many as a cluster has room for."""

    config: StudyConfig
    space: SearchSpace
    points: tuple[dict[str, ParamValue], ...]
    source: DataSource
    name: str
    workers: int | None

    @property
    def fingerprint(self) -> Fingerprint:
        """Return what must not change when the study is continued, by the name that a refusal gives it."""
        parameters: Fingerprint = {
            f"parameter {name}": spec.model_dump_json(exclude={"why", "grid"})
            for name, spec in self.space.parameters.items()
        }
        return parameters | {
            "baseline": self.space.baseline_point.model_dump_json(),
            "data": f"{self.source.name} {self.source.digest}",
            "seed": self.config.seed,
            "limit on training images": self.config.limit_train,
            "version of the training code": TRAINING_VERSION,
        }

    @property
    def workers_in_words(self) -> str:
        """Return what trains, in words."""
        if self.workers is None:
            return "workers wherever Ray has room"
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        return workers if self.config.executor == "local" else f"up to {workers} on Ray"

    def title(self, precision: Precision) -> str:
        """Return the line that a study begins with."""
        config = self.config
        fallback = f" (FALLBACK: {PREFERRED.title} could not be had)" if self.source.is_fallback else ""
        optuna = config.engine == "optuna"
        proposing = f"{config.sampler} / {config.pruner}" if optuna else f"{config.engine} {config.sampler}"
        return (
            f"study {self.name}: space {self.space.name}, data {self.source.name}{fallback}, "
            f"{proposing}, seed {config.seed}, {self.workers_in_words}, {precision}"
        )

    def metadata(self, precision: Precision, trials: int) -> "StudyMetadata":
        """Return what the study's run shows, with its total of `trials`: with a budget of time not the config's."""
        from fashion_study.tracking.runs import StudyMetadata

        config = self.config
        places = {name: StudyConfig.model_fields[name].default for name in PLACES}
        found = {"dataset": self.source.name, "precision": precision.value, "trials": trials, "budget": None}
        repeating = config.model_copy(update=found | places)
        return StudyMetadata(
            name=self.name,
            space_yaml=self.space.source_text,
            attrs={
                "space": self.space.name,
                "space_digest": self.space.digest,
                "dataset": self.source.name,
                "data_digest": self.source.digest,
                "seed": config.seed,
                "limit_train": config.limit_train,
                "precision": precision.value,
                "training_version": TRAINING_VERSION,
            },
            settings=config.model_dump(exclude=FIXED | PLACES)
            | {name: text for name, text in LEFT_OUT.items() if getattr(config, name) is None}
            | {
                "trials": trials,
                "workers": "wherever there is room" if self.workers is None else self.workers,
                "fallback": self.source.is_fallback,
                # With the defaults that another version could change.
                "command": repeating.command(always=("trials", "sampler", "pruner", "seed")),
            },
        )


def plan_study(config: StudyConfig) -> Plan:
    """Find and check everything that a config names.

    Raises:
        BadInputError: the config does not fit.
        DataError: the images are missing or damaged.
        StoreError: no store can be at that place or address; nothing is made yet.
    """
    space, points = config.check()
    check_reachable(open_store(config.store, study_db=config.study_db, makes_folder=False).tracking_uri)
    source = locate(config.dataset, config.data_dir)
    check_limit(source, config.limit_train)
    name = config.study or f"{source.name}-{space.name}"
    if config.study and source.is_fallback:
        # The user's own name was meant for other data; the two never share a study.
        name = f"{name}-{source.name}"
    workers = config.workers or (default_workers() if config.executor == "local" else None)
    return Plan(config, space, points, source, name, workers)


def refuse_difference(study_name: str, stored: Mapping[str, object], asked: Mapping[str, object]) -> None:
    """Refuse to continue a study as another one; a hyperparameter that is newer than the study has its default.

    Raises:
        BadInputError: something differs; the message lists it, stored beside asked.
    """
    with suppress(ValidationError):  # Altered: it differs as it is.
        baseline = Hyperparameters.model_validate_json(str(stored.get("baseline"))).model_dump_json()
        stored = {**stored, "baseline": baseline}
    differences = [
        f"  {name}: stored {stored.get(name, 'nothing')}, asked for {asked.get(name, 'nothing')}"
        for name in {**stored, **asked}
        if stored.get(name) != asked.get(name)
    ]
    if differences:
        listed = "\n".join(differences)
        raise BadInputError(
            f"Study {study_name!r} was begun as another study:\n{listed}\n"
            "Expected the same, so that its trials can be compared. "
            "Repeat the stored values, or give the new study a name of its own with --study."
        )
