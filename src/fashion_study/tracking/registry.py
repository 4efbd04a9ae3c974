"""The model registry: versions of a data set's model, and the aliases that say which of them is in use."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from fashion_study.errors import DamagedModelError
from fashion_study.text import printable
from fashion_study.trial import ParamValue

CHAMPION = "champion"
PREVIOUS_CHAMPION = "previous-champion"
CHALLENGER = "challenger"

MODEL_FILE = "data/model.keras"
CARD_FILE = "MLmodel"


class Stored(Protocol):
    """Name a stored model: where it lies, and the SHA-256 of its file."""

    @property
    def model_uri(self) -> str:
        """Return MLflow's address of the model's folder."""
        ...

    @property
    def sha256(self) -> str:
        """Return the digest of the `.keras` file."""
        ...


@dataclass(frozen=True)
class Candidate:
    """Describe a logged model that is to become a version: its run, its address and the digest of its file."""

    dataset: str
    run_id: str
    model_uri: str
    sha256: str
    tags: Mapping[str, ParamValue]


@dataclass(frozen=True)
class Version:
    """Show one version of a registered model, with the aliases it has now."""

    name: str
    number: int
    run_id: str
    model_uri: str
    sha256: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def study(self) -> str | None:
        """Name the study that the version comes from; a registered baseline has none."""
        return self.tags.get("study")

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"


class Registry:
    """Read and write the registered models of a store."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def register(self, candidate: Candidate) -> Version:
        """Return the version of a run's model, made where there is none yet; the same run never gets two.

        Raises:
            DamagedModelError: the logged model is not finished, or its file is not the one that was logged.
        """
        name = registered_name(candidate.dataset)
        known = self.versions(name)
        if (found := next((v for v in known if v.run_id == candidate.run_id), None)) is not None:
            return found
        model_id = candidate.model_uri.removeprefix("models:/")
        logged = self._client.get_logged_model(model_id)
        if logged.status is not LoggedModelStatus.READY:
            raise DamagedModelError(
                f"The model of run {candidate.run_id} is {logged.status}. Expected READY: its logging was cut off. "
                "Run the study again; it trains the model anew."
            )
        if not known:
            self._create_name(name)
        made = self._client.create_model_version(
            name,
            # Not models:/ID, which an embedded registry looks up in MLflow's default store.
            source=logged.artifact_location,
            run_id=candidate.run_id,
            model_id=model_id,
            # A version is there as soon as it is made; a server's would be waited for, with a line about it.
            await_creation_for=0,
            tags={key: str(value) for key, value in candidate.tags.items()} | {"model_sha256": candidate.sha256},
        )
        return self._version(made)

    def names(self) -> list[str]:
        """Return the registered models of this project that have a version."""
        return sorted({str(v.name) for v in self._client.search_model_versions("") if "model_sha256" in v.tags})

    def versions(self, name: str) -> list[Version]:
        """Return every version of a registered model, the oldest first; none where there is no such model."""
        found = self._client.search_model_versions(f"name = '{name}'")
        aliases = self._aliases(name) if found else {}
        return sorted((_read(version, aliases) for version in found), key=lambda version: version.number)

    def by_alias(self, name: str, alias: str) -> Version | None:
        """Return the version that an alias points to, None where it points nowhere."""
        return next((version for version in self.versions(name) if alias in version.aliases), None)

    def move_alias(self, name: str, alias: str, number: int) -> None:
        """Let an alias point to a version, from wherever it pointed before."""
        self._client.set_registered_model_alias(name, alias, str(number))

    def remove_alias(self, name: str, alias: str) -> None:
        """Let an alias point nowhere. `champion` never does: whoever asks for that has a bug."""
        if alias == CHAMPION:
            raise AssertionError("champion is never left unset")
        self._client.delete_registered_model_alias(name, alias)

    def tag(self, version: Version, tags: Mapping[str, ParamValue]) -> None:
        """Add tags to a version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(version.name, str(version.number), key, value)

    def fetch(self, model: Stored, folder: Path) -> Path:
        """Bring a model's `.keras` file into `folder`, and return it once its SHA-256 is the registered one.

        Raises:
            DamagedModelError: the file is missing or another one.
        """
        path = self._download(model, MODEL_FILE, folder)
        digest = _sha256(path)
        if digest != model.sha256:
            raise DamagedModelError(
                f"The model file of {model} has the SHA-256 {digest[:12]}…. Expected {model.sha256[:12]}…, which "
                "was registered: the file was altered since. Nothing was loaded; register a fresh model."
            )
        return path

    def signature(self, model: Stored) -> str:
        """Write what a logged model says that it takes and gives: `Tensor(...) -> Tensor(...)`.

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
            # Whatever MLflow makes of an altered description, the description is at fault.
            except Exception as error:
                reason = printable(" ".join(str(error).split()))
                raise DamagedModelError(
                    f"The description of {model} cannot be read: {reason}. Expected {CARD_FILE} as MLflow wrote it."
                ) from error

    def _download(self, model: Stored, name: str, folder: Path) -> Path:
        try:
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{self._folder(model.model_uri)}/{name}",
                dst_path=str(folder),
                tracking_uri=self._client.tracking_uri,
            )
        except (MlflowException, OSError) as error:
            raise _unreadable(model, name, printable(" ".join(str(error).split()))) from error
        if not Path(path).is_file():
            raise _unreadable(model, name, "found a folder")
        return Path(path)

    def _folder(self, model_uri: str) -> str:
        """Return where a model's folder lies; MLflow would look `models:/ID` up in its default store."""
        scheme, _, model_id = model_uri.partition(":/")
        is_logged = scheme == "models" and model_id.startswith("m-")
        return str(self._client.get_logged_model(model_id).artifact_location) if is_logged else model_uri

    def _version(self, found: ModelVersion) -> Version:
        return _read(found, self._aliases(found.name))

    def _aliases(self, name: str) -> dict[int, tuple[str, ...]]:
        by_number: dict[int, tuple[str, ...]] = {}
        for alias, number in sorted(self._client.get_registered_model(name).aliases.items()):
            by_number[int(number)] = (*by_number.get(int(number), ()), alias)
        return by_number

    def _create_name(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except MlflowException:
            # Another process made it in the meantime, or it is there without a version.
            self._client.get_registered_model(name)


def registered_name(dataset: str) -> str:
    """Name the registered model of a data set."""
    return f"{dataset}-cnn"


def _unreadable(model: Stored, name: str, reason: str) -> DamagedModelError:
    return DamagedModelError(
        f"The model file of {model} cannot be read: {reason}. Expected {name} at {model.model_uri}. "
        "Look for it with python -m experiments.doctor."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(found: ModelVersion, aliases: Mapping[int, tuple[str, ...]]) -> Version:
    number = int(found.version)
    return Version(
        name=found.name,
        number=number,
        run_id=found.run_id or "",
        model_uri=f"models:/{found.model_id}" if found.model_id else str(found.source),
        sha256=found.tags.get("model_sha256", ""),
        tags=dict(found.tags),
        aliases=aliases.get(number, ()),
    )
