"""The model registry: versions of a data set's model, and the aliases that say which of them is in use."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self, TypeVar

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from fashion_study.errors import DamagedModelError
from fashion_study.paths import check_temporary_folder
from fashion_study.text import printable
from fashion_study.tracking.attempt import hyperparameters_of
from fashion_study.tracking.search import all_pages, find_run
from fashion_study.trial import Hyperparameters, ParamValue

T = TypeVar("T")

CHAMPION = "champion"
PREVIOUS_CHAMPION = "previous-champion"
CHALLENGER = "challenger"
# On each champion: the versions that were champion before it, the latest first. The alias `previous-champion` only
# shows the first of them; after a kill this tag is right and the alias may not be.
LINE = "champions_before"

MODEL_FILE = "data/model.keras"
CARD_FILE = "MLmodel"


@dataclass(frozen=True)
class ModelRef:
    """A stored model: its folder's address, the SHA-256 of its `.keras` file, its run, and its name in messages."""

    uri: str
    sha256: str
    run_id: str
    title: str

    @classmethod
    def of_run(cls, run: Run) -> Self:
        """Return the model that a run logged, by its tags."""
        tags = run.data.tags
        return cls(tags.get("model_uri", ""), tags.get("model_sha256", ""), run.info.run_id, f"run {run.info.run_id}")

    def __str__(self) -> str:
        return self.title


@dataclass(frozen=True)
class Version(ModelRef):
    """A version of a registered model, with the aliases it had when the registry was read."""

    name: str
    number: int
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def study(self) -> str | None:
        """Return the study that the version comes from; a registered baseline has none."""
        return self.tags.get("study")


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model as it was when the registry was read: its versions, the oldest first, and its aliases.

    An alias may point to a version that was deleted.
    """

    name: str
    versions: tuple[Version, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)

    def version(self, number: int | None) -> Version | None:
        """Return a version by its number."""
        return next((version for version in self.versions if version.number == number), None)

    def by_alias(self, alias: str) -> Version | None:
        """Return the version that an alias points to."""
        return self.version(self.aliases.get(alias))

    @property
    def champion(self) -> Version | None:
        """Return the champion, None where there is none."""
        return self.by_alias(CHAMPION)

    @property
    def former_champions(self) -> list[Version]:
        """Return the versions that were champion before this one, the latest first, without deleted ones."""
        champion = self.champion
        if champion is None:
            return []
        if (tag := champion.tags.get(LINE)) is None:
            # Made champion by hand.
            shown = self.by_alias(PREVIOUS_CHAMPION)
            return [shown] if shown is not None and shown.number != champion.number else []
        numbers = (int(word) for word in tag.split(",") if word.strip().isdecimal())
        return [version for number in numbers if (version := self.version(number)) is not None]

    @property
    def previous(self) -> Version | None:
        """Return the version that a rollback would make champion, None where there is none."""
        return next(iter(self.former_champions), None)


class Registry:
    """The registered models of a store, read and written by their names."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client

    def models(self) -> list[RegisteredModel]:
        """Return the registered models of this project that have a version, by their names."""
        # Two of them: a user can delete the others, and another project's model can have one.
        ours = {"model_sha256", "dataset", "data_digest", "code_digest", "parameter_count"}
        return [model for model in self._read() if any(len(ours & one.tags.keys()) > 1 for one in model.versions)]

    def model(self, name: str) -> RegisteredModel:
        """Return one registered model, without versions where there is none of that name."""
        return next(iter(self._read(f"name = '{name}'")), RegisteredModel(name))

    def of_dataset(self, dataset: str) -> RegisteredModel:
        """Return the registered model of a data set, by its versions' tags where a user has renamed it."""
        named = self.model(registered_name(dataset))
        renamed = (each for each in self.models() if any(one.tags.get("dataset") == dataset for one in each.versions))
        return named if named.versions else next(renamed, named)

    def register(self, dataset: str, run: Run, tags: Mapping[str, ParamValue]) -> Version:
        """Return the version of a run's model, made where there is none yet; the same run never gets two.

        Raises:
            DamagedModelError: the logged model is not finished, or its file is not the one that was logged.
        """
        known, run_id, model = self.of_dataset(dataset), run.info.run_id, ModelRef.of_run(run)
        if (found := next((one for one in known.versions if one.run_id == run_id), None)) is not None:
            return found
        model_id = model.uri.removeprefix("models:/")
        logged = self.client.get_logged_model(model_id)
        if logged.status is not LoggedModelStatus.READY:
            raise DamagedModelError(
                f"The model of run {run_id} is {logged.status}. Expected READY: its logging was cut off. "
                "Run the study again; it trains the model again."
            )
        if not known.versions:
            try:
                self.client.create_registered_model(known.name)
            except MlflowException:
                # Another process made it in the meantime, or it is there without a version; else this error says why.
                self.client.get_registered_model(known.name)
        made = self.client.create_model_version(
            known.name,
            # Not models:/ID, which an embedded registry looks up in MLflow's default store.
            source=logged.artifact_location,
            run_id=run_id,
            model_id=model_id,
            # A version is there as soon as it is made; MLflow would wait for a server's, and print a line about it.
            await_creation_for=0,
            tags={key: str(value) for key, value in tags.items()} | {"model_sha256": model.sha256},
        )
        return _version(made, known.aliases)

    def move_alias(self, name: str, alias: str, number: int) -> None:
        """Let an alias point to a version, from wherever it pointed before."""
        self.client.set_registered_model_alias(name, alias, str(number))

    def remove_alias(self, name: str, alias: str) -> None:
        """Delete an alias. `champion` is never deleted: a caller that asks for it has a bug."""
        if alias == CHAMPION:
            raise AssertionError("champion is never left unset")
        self.client.delete_registered_model_alias(name, alias)

    def tag(self, version: Version, tags: Mapping[str, ParamValue]) -> None:
        """Add tags to a version."""
        for key, value in tags.items():
            self.client.set_model_version_tag(version.name, str(version.number), key, value)

    def load(self, model: ModelRef, load_file: Callable[[Path, Hyperparameters | None], T]) -> T:
        """Fetch a model's `.keras` file, and load it with the parameters of its run, else with its own in MLflow.

        Those are None where both are gone.

        Raises:
            DamagedModelError: the file is missing or another one, or `load_file` refuses it.
        """
        with TemporaryDirectory(prefix="fashion-study-") as folder:
            return load_file(self.fetch(model, Path(folder)), self._hyperparameters(model))

    def fetch(self, model: ModelRef, folder: Path) -> Path:
        """Download a model's `.keras` file into `folder`, and return it if its SHA-256 is the registered one.

        Raises:
            DamagedModelError: the file is missing or another one.
        """
        if not model.sha256:
            raise DamagedModelError(
                f"{model} has no tag model_sha256, with which its file is checked. Expected it as it was registered; "
                "python -m experiments.doctor --fix takes it from its run."
            )
        path = self._download(model, MODEL_FILE, folder)
        digest = file_sha256(path)
        if digest != model.sha256:
            raise DamagedModelError(
                f"The model file of {model} has the SHA-256 {digest[:12]}…. Expected {model.sha256[:12]}…, which "
                "was registered: the file was altered since. Nothing was loaded; register a fresh model."
            )
        return path

    def signature(self, model: ModelRef) -> str:
        """Return the inputs and outputs that a logged model declares: `Tensor(...) -> Tensor(...)`.

        Raises:
            DamagedModelError: the description beside the model is missing or cannot be read.
        """
        from mlflow.models import Model

        with TemporaryDirectory() as folder:
            path = self._download(model, CARD_FILE, Path(folder))
            try:
                # Model.load reads plain YAML; the flavours and code folders that it names are not looked at.
                signature = Model.load(str(path)).signature
                if signature is None or signature.inputs is None or signature.outputs is None:
                    return "none"
                return " -> ".join(
                    ", ".join(str(one) for one in schema.inputs) for schema in (signature.inputs, signature.outputs)
                )
            # MLflow raises errors of many types for an altered description.
            except Exception as error:
                reason = printable(" ".join(str(error).split()))
                raise DamagedModelError(
                    f"The description of {model} cannot be read: {reason}. Expected {CARD_FILE} as MLflow wrote it."
                ) from error

    def _hyperparameters(self, model: ModelRef) -> Hyperparameters | None:
        if model.run_id and (run := find_run(self.client, model.run_id)):
            return hyperparameters_of(run.data.params, f"run {model.run_id}")
        if (logged := self._logged(model.uri)) and logged.params:
            return hyperparameters_of(logged.params, f"logged model {logged.model_id}")
        return None

    def _download(self, model: ModelRef, name: str, folder: Path) -> Path:
        reason = "found a folder"
        try:
            path = Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{self.folder(model.uri)}/{name}",
                    dst_path=str(folder),
                    tracking_uri=self.client.tracking_uri,
                )
            )
            if path.is_file():
                return path
        except (MlflowException, OSError) as error:
            check_temporary_folder()
            reason = printable(" ".join(str(error).split()))
        raise DamagedModelError(
            f"The model file of {model} cannot be read: {reason}. Expected {name} at {model.uri}. "
            "Look for it with python -m experiments.doctor."
        )

    def folder(self, model_uri: str) -> str:
        """Return where a model's folder lies; MLflow would look `models:/ID` up in its default store."""
        logged = self._logged(model_uri)
        return model_uri if logged is None else str(logged.artifact_location)

    def _logged(self, model_uri: str) -> LoggedModel | None:
        scheme, _, model_id = model_uri.partition(":/")
        is_logged = scheme == "models" and model_id.startswith("m-")
        return self.client.get_logged_model(model_id) if is_logged else None

    def _read(self, condition: str = "") -> list[RegisteredModel]:
        # The aliases first: else one that is moved to a new version in between would point to no version.
        models = all_pages(self.client.search_registered_models, condition)
        aliases = {one.name: {alias: int(number) for alias, number in sorted(one.aliases.items())} for one in models}
        versions: dict[str, list[Version]] = defaultdict(list)
        for found in all_pages(self.client.search_model_versions, condition):
            versions[found.name].append(_version(found, aliases.get(found.name, {})))
        return [
            RegisteredModel(name, tuple(sorted(of_name, key=lambda version: version.number)), aliases.get(name, {}))
            for name, of_name in sorted(versions.items())
        ]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def registered_name(dataset: str) -> str:
    """Return the name of a data set's registered model."""
    return f"{dataset}-cnn"


def _version(found: ModelVersion, aliases: Mapping[str, int]) -> Version:
    number = int(found.version)
    return Version(
        uri=f"models:/{found.model_id}" if found.model_id else str(found.source),
        sha256=found.tags.get("model_sha256", ""),
        run_id=found.run_id or "",
        title=f"{found.name} version {number}",
        name=found.name,
        number=number,
        tags=dict(found.tags),
        aliases=tuple(alias for alias, target in aliases.items() if target == number),
    )
