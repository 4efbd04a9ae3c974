"""The promises about models that mean harm: nothing in a registry is run, whatever is written beside it."""

import ast
import hashlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import mlflow.pyfunc
import numpy as np
import pytest
from PIL import Image

import experiments
import fashion_study
from fashion_study.errors import DamagedModelError, ExitCode
from fashion_study.prediction.model_uri import ModelUri
from fashion_study.prediction.predict import predict
from fashion_study.promotion.decision import Outcome
from fashion_study.tracking.registry import CHAMPION, LINE, Version
from tests.hostile.payloads import BESIDE, IN_PLACE, MODEL, Payload, lambda_layer, legacy_hdf5, loader_module
from tests.support.model_store import ModelStore, digits, trained


@dataclass(frozen=True)
class Registered:
    """A store with a champion and a version whose folder a test spoils."""

    models: ModelStore
    version: Version
    folder: Path
    picture: Path
    canary: Path

    def register(self, sha256: str) -> None:
        """Write a digest wherever the project looks for one."""
        self.models.registry.tag(self.version, {"model_sha256": sha256})
        self.models.client.set_tag(self.version.run_id, "model_sha256", sha256)

    @property
    def uses(self) -> dict[str, Callable[[], object]]:
        """Return every way in which the project loads a model out of the registry."""
        models, number = self.models, self.version.number
        logged = ModelUri.parse(models.client.get_run(self.version.run_id).data.tags["model_uri"])
        registered = ModelUri.parse(f"models:/digits-cnn/{number}")
        return {
            "promotion": lambda: models.promote(version=number, dry_run=True),
            "promotion by force": lambda: models.promote(version=number, force="the canary is not to sing"),
            "rollback": lambda: models.promote(rollback=True),
            "prediction by version": lambda: predict([self.picture], models.store, registered),
            "prediction by id": lambda: predict([self.picture], models.store, logged),
        }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelStore, Version]:
    models = ModelStore(tmp_path_factory.mktemp("hostile") / "store")
    study = models.study("digits-small")
    champion = models.register(models.trial(study, 0, trained(0)))
    models.registry.move_alias(champion.name, CHAMPION, champion.number)
    version = models.register(models.trial(study, 1, trained(0, seed=1)))
    # What a rollback would put back into use.
    models.registry.tag(champion, {LINE: str(version.number)})
    return models, version


@pytest.fixture
def registered(store: tuple[ModelStore, Version], tmp_path: Path) -> Iterator[Registered]:
    models, version = store
    folder = models.model_file(version).parent.parent
    sound = tmp_path / "sound"
    shutil.copytree(folder, sound)
    picture = tmp_path / "picture.png"
    Image.fromarray(digits().validation.images[0, ..., 0]).save(picture)
    made = Registered(models, version, folder, picture, tmp_path / "canary")
    yield made
    made.register(version.sha256)
    shutil.rmtree(folder)
    shutil.copytree(sound, folder)


USES = ("promotion", "promotion by force", "rollback", "prediction by version", "prediction by id")
# A file is loaded for both kinds of promotion alike, and for both kinds of prediction.
ONE_OF_EACH_KIND = ("promotion by force", "rollback", "prediction by id")


def refuse(registered: Registered, use: str) -> str:
    aliases = registered.models.aliases()
    with pytest.raises(DamagedModelError) as refused:
        registered.uses[use]()
    assert refused.value.exit_code is ExitCode.STORE
    assert registered.models.aliases() == aliases
    assert not registered.canary.exists()
    return str(refused.value)


@pytest.mark.parametrize("payload", IN_PLACE.values(), ids=IN_PLACE.keys())
def test_a_hostile_model_is_refused_with_any_checksum(payload: Payload, registered: Registered) -> None:
    payload(registered.folder, registered.canary)
    path = registered.folder / MODEL
    message = refuse(registered, "promotion by force")
    assert "altered since" in message or "cannot be read" in message
    if path.is_file() and not path.is_symlink():
        registered.register(hashlib.sha256(path.read_bytes()).hexdigest())
        for use in ONE_OF_EACH_KIND:
            assert "not one that this project saves" in refuse(registered, use)


def test_a_sound_model_of_another_version_is_refused(registered: Registered) -> None:
    other = registered.models.registry.model("digits-cnn").champion
    assert other is not None
    shutil.copy(registered.models.model_file(other), registered.folder / MODEL)
    for use in USES:
        assert "altered since" in refuse(registered, use)


@pytest.mark.parametrize("payload", BESIDE.values(), ids=BESIDE.keys())
def test_what_lies_beside_a_sound_model_is_not_looked_at(payload: Payload, registered: Registered) -> None:
    payload(registered.folder, registered.canary)
    assert registered.models.promote(version=registered.version.number, dry_run=True).outcome is not None
    for use in ("prediction by version", "prediction by id"):
        registered.uses[use]()
    assert not registered.canary.exists()


@pytest.mark.parametrize("save", [lambda_layer, legacy_hdf5])
def test_the_canary_sings_where_keras_trusts_a_lambda(save: Payload, registered: Registered) -> None:
    save(registered.folder, registered.canary)
    path = registered.folder / MODEL
    if save is legacy_hdf5:
        path = path.replace(path.with_suffix(".h5"))
    keras.saving.load_model(path, safe_mode=False)(np.zeros((1, 28, 28, 1), dtype="float32"))
    assert registered.canary.exists()


def test_the_canary_sings_where_mlflow_loads_the_model(registered: Registered) -> None:
    loader_module(registered.folder, registered.canary)
    mlflow.pyfunc.load_model(str(registered.folder))
    assert registered.canary.exists()


def test_the_canary_sings_where_a_pickle_is_loaded(registered: Registered) -> None:
    IN_PLACE["a pickle"](registered.folder, registered.canary)
    pickle.loads((registered.folder / MODEL).read_bytes()).close()
    assert registered.canary.exists()


def test_the_uses_are_those_that_are_tried(registered: Registered) -> None:
    assert tuple(registered.uses) == USES
    assert registered.uses["promotion"]().outcome in (Outcome.PENDING, Outcome.REFUSED)  # type: ignore[attr-defined]


# What turns a file into running code; nothing in the project may call any of them.
LOADERS = {"load_model", "load_pyfunc", "unpickle", "eval", "exec", "unsafe_load", "full_load", "import_module"}
UNPICKLERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "mlflow.pyfunc", "mlflow.tensorflow"}


def test_the_project_calls_nothing_that_runs_code_from_a_file() -> None:
    found = set()
    for package in (fashion_study, experiments):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                match node:
                    case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in LOADERS:
                        found.add((path.name, ast.unparse(node.func)))
                    case ast.Import(names=names):
                        found |= {(path.name, name.name) for name in names if name.name in UNPICKLERS}
                    case ast.ImportFrom(module=str(module)) if module in UNPICKLERS:
                        found.add((path.name, module))
    # What is imported by name there is named by this project itself.
    assert found == {("__init__.py", "import_module"), ("libraries.py", "import_module")}
