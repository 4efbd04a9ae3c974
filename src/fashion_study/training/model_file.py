"""Load a model's file: only what this project's builder makes gets as far as Keras.

Keras's safe mode refuses code in a file, and has had holes before. So the file is read without Keras first: which
members the archive has, which layers its config lists, which values those carry, what its weights are.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError

from fashion_study.data.fashion_mnist import SIDE
from fashion_study.errors import DamagedModelError
from fashion_study.text import shown
from fashion_study.trial import Hyperparameters

if TYPE_CHECKING:
    import h5py
    import keras

IMAGE_SHAPE = (SIDE, SIDE, 1)
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
# What Keras writes, uncompressed, and how large it may be: the builder's largest model has 95 MB of weights.
MEMBERS = {"metadata.json": 10_000, CONFIG: 200_000, WEIGHTS: 128 * 2**20}
# With room for the archive's own list of its members, which is read before anything else.
MAX_FILE = sum(MEMBERS.values()) + 100_000
MAX_CLASSES = 1_000
MAX_H5_OBJECTS = 200
MAX_H5_DEPTH = 4

# The layers of `training.model`, in their order. In any other order the same layers could ask for more memory
# than there is.
LAYERS = (
    ("InputLayer",),
    ("Identity", "Rescaling"),
    *[("Conv2D",), ("MaxPooling2D",), ("ReLU",)] * 2,
    ("Conv2D",),
    ("Flatten",),
    ("Dense",),
    ("Dense",),
)
OBJECTS = {
    "keras": {"Sequential", "DTypePolicy"},
    "keras.layers": {name for names in LAYERS for name in names},
    "keras.initializers": {"GlorotUniform", "Zeros"},
}
# The values that the builder gives to what it does not vary; None stands for a default that Keras leaves open.
_EVERYWHERE: dict[str, list[Any]] = {"trainable": [True]}
_WEIGHTED: dict[str, list[Any]] = {"use_bias": [True], "activation": ["linear", "relu", "softmax"]}
_IMAGES: dict[str, list[Any]] = {"data_format": ["channels_last"]}
VALUES: Mapping[str, Mapping[str, list[Any]]] = {
    "InputLayer": {"batch_shape": [[None, *IMAGE_SHAPE]], "sparse": [False], "ragged": [False], "optional": [False]},
    "Identity": {},
    "Rescaling": {"scale": [1 / 255], "offset": [0.0]},
    "Conv2D": {
        **_WEIGHTED,
        **_IMAGES,
        "kernel_size": [[3, 3]],
        "strides": [[1, 1]],
        "padding": ["valid"],
        "dilation_rate": [[1, 1]],
        "groups": [1],
    },
    "MaxPooling2D": {**_IMAGES, "pool_size": [[2, 2]], "strides": [[2, 2]], "padding": ["valid"]},
    "ReLU": {"negative_slope": [0.0], "threshold": [0.0]},
    "Flatten": _IMAGES,
    "Dense": _WEIGHTED,
}
NODE = {"module", "class_name", "config", "registered_name", "build_config"}
# Checked apart: names are free, sizes have the range of the hyperparameters, objects are checked wherever they are.
_FREE = {"name", "filters", "units", "dtype", "kernel_initializer", "bias_initializer"}


def load_model_file(path: Path) -> "keras.Model":
    """Load a `.keras` file of this project, uncompiled: raw pixels (n, 28, 28, 1) in, probabilities (n, classes) out.

    Verify its SHA-256 first (`Registry.fetch`): this says that a file is harmless, not that it is the right one.

    Raises:
        DamagedModelError: the file is not what the shared builder makes and Keras saves.
    """
    check_model_file(path)
    import keras

    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    # Whatever Keras makes of a file that passed until here, the file is at fault.
    except Exception as error:
        _refuse(path, f"Keras cannot load it: {type(error).__name__}: {error}", "weights that fit the layers")
    if tuple(model.input_shape) != (None, *IMAGE_SHAPE) or len(model.output_shape) != 2:
        _refuse(path, f"shapes {model.input_shape} and {model.output_shape}", f"(None, {IMAGE_SHAPE}) and two axes")
    return model


def check_model_file(path: Path) -> None:
    """Refuse a file that the shared builder and Keras would not have written; nothing of it is executed.

    Raises:
        DamagedModelError: saying what was found.
    """
    if path.suffix != ".keras":
        _refuse(path, f"the ending {path.suffix!r}", "a .keras file")
    members = _members(path)
    _check_config(path, _parsed(path, members[CONFIG]))
    _check_weights(path, members[WEIGHTS])


def _members(path: Path) -> dict[str, bytes]:
    """Read the archive's members, none of which may be compressed: so none is larger than the file."""
    try:
        if (length := path.stat().st_size) > MAX_FILE:
            _refuse(path, f"{length:,} bytes", f"at most {MAX_FILE:,}")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if sorted(names) != sorted(MEMBERS):
                _refuse(path, f"the members {shown(names)}", f"{sorted(MEMBERS)}, each once")
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                    _refuse(path, f"{entry.filename} compressed", "members stored as they are")
                if entry.file_size > MEMBERS[entry.filename]:
                    size = f"{entry.filename} of {entry.file_size:,} bytes"
                    _refuse(path, size, f"at most {MEMBERS[entry.filename]:,}")
            return {name: archive.read(name) for name in names}
    # `zipfile` says NotImplementedError of an archive of a later version or method, RuntimeError of an encrypted one.
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        _refuse(path, f"no readable archive ({error})", "a .keras file, which is a zip archive")


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"a {CONFIG} that is no JSON ({error})", "the config of a Sequential model")
    if not isinstance(config, dict):
        _refuse(path, f"a {CONFIG} with {shown(config)}", "the config of a Sequential model")
    return config


def _check_config(path: Path, config: dict[str, Any]) -> None:
    for node in _nodes(config):
        if node.keys() & {"module", "class_name", "registered_name"}:
            _check_object(path, node)
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else None
    if config.get("class_name") != "Sequential" or not isinstance(layers, list):
        _refuse(path, f"a model of class {shown(config.get('class_name'))}", "a Sequential model with its layers")
    if config.get("compile_config"):
        _refuse(path, f"a compile_config {shown(config['compile_config'])}", "a model that is not compiled")
    _check_built(path, {key: value for key, value in config.items() if key != "compile_config"}, IMAGE_SHAPE)
    _check_layers(path, layers)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every JSON object inside a value; a loop, since a file may nest deeper than Python can call."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as node:
                yield node
                waiting.extend(node.values())
            case list() as values:
                waiting.extend(values)


def _check_object(path: Path, node: dict[str, Any]) -> None:
    """Refuse what would make Keras look up a class, a function or a module that is not on the list."""
    module, name, settings = node.get("module"), node.get("class_name"), node.get("config")
    listed = isinstance(module, str) and isinstance(name, str) and name in OBJECTS.get(module, ())
    if not listed or node.get("registered_name") is not None or not isinstance(settings, dict):
        found = (module, name, node.get("registered_name"))
        _refuse(path, f"an object of {shown(found)} in its config", f"classes of Keras out of {shown(OBJECTS)}")
    if name == "DTypePolicy" and settings != {"name": "float32"}:
        _refuse(path, f"the precision {shown(settings)}", "float32 throughout")


def _check_layers(path: Path, layers: list[Any]) -> None:
    names = [layer.get("class_name") if isinstance(layer, dict) else None for layer in layers]
    if len(names) != len(LAYERS) or any(name not in allowed for name, allowed in zip(names, LAYERS, strict=True)):
        _refuse(path, f"the layers {shown(names)}", "those of the shared builder, in its order")
    for layer in layers:
        _check_values(path, layer["class_name"], layer["config"])
    by_name: dict[str, list[Any]] = {}
    for layer in layers:
        by_name.setdefault(layer["class_name"], []).append(layer["config"])
    filters = [convolution.get("filters") for convolution in by_name["Conv2D"]]
    units = [dense.get("units") for dense in by_name["Dense"]]
    _check_sizes(path, filters, units)
    for layer, shape in zip(layers, _input_shapes(filters, units), strict=True):
        _check_built(path, layer, shape)


def _check_values(path: Path, layer: str, settings: dict[str, Any]) -> None:
    allowed = _EVERYWHERE | dict(VALUES[layer])
    for key, value in settings.items():
        if value is None or key in _FREE:
            continue
        if value not in allowed.get(key, []):
            _refuse(path, f"a {layer} with {shown(key)} {shown(value)}", f"one of {allowed.get(key, ['no such key'])}")
    if not isinstance(dtype := settings.get("dtype"), dict) and dtype != "float32":
        _refuse(path, f"a {layer} of dtype {shown(dtype)}", "float32")


def _check_sizes(path: Path, filters: Sequence[Any], units: Sequence[Any]) -> None:
    """Let only those sizes through that a hyperparameter can have: Keras allocates what the config asks for."""
    first, second, third = filters
    dense, classes = units
    try:
        Hyperparameters(filters_1=first, filters_2=second, filters_3=third, dense_units=dense)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        _refuse(path, f"{problem['loc'][0]} = {shown(problem['input'])}", f"a hyperparameter's range: {problem['msg']}")
    if type(classes) is not int or not 2 <= classes <= MAX_CLASSES:
        _refuse(path, f"{shown(classes)} classes", f"2 to {MAX_CLASSES}")


def _input_shapes(filters: Sequence[int], units: Sequence[int]) -> list[tuple[int, ...]]:
    """Return what each layer of the builder takes: convolutions of 3 shorten a side by 2, pooling halves it."""
    first, second, third = filters
    images = [IMAGE_SHAPE] * 3
    after_first = [(26, 26, first), (13, 13, first), (13, 13, first)]
    after_second = [(11, 11, second), (5, 5, second), (5, 5, second)]
    return [*images, *after_first, *after_second, (3, 3, third), (9 * third,), (units[0],)]


def _check_built(path: Path, node: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Refuse another shape than the sizes give: Keras allocates for the one it reads, whatever the layers before."""
    built = node.get("build_config")
    if node.keys() - NODE or built not in (None, {"input_shape": [None, *shape]}):
        found = f"{shown(sorted(node.keys() - NODE))} and the build_config {shown(built)}"
        _refuse(path, f"a {node['class_name']} with {found}", f"the shape {(None, *shape)} and nothing else")


def _check_weights(path: Path, content: bytes) -> None:
    import h5py

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            total = sum(dataset.size * dataset.dtype.itemsize for dataset in _datasets(path, file))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        _refuse(path, f"{WEIGHTS} that cannot be read ({error})", "weights in HDF5")
    # A dataset may declare any size and store nothing of it.
    if total > len(content):
        _refuse(path, f"{total:,} bytes of weights declared in {len(content):,}", "all of them stored")


def _datasets(path: Path, file: "h5py.File") -> Iterator["h5py.Dataset"]:
    """Yield the file's arrays, refusing every way in which HDF5 can point outside the file or to itself."""
    import h5py

    waiting: list[tuple[h5py.Group, int]] = [(file, 0)]
    seen = 0
    while waiting:
        group, depth = waiting.pop()
        for name in group:
            seen += 1
            if seen > MAX_H5_OBJECTS or depth >= MAX_H5_DEPTH:
                _refuse(path, f"{WEIGHTS} with many or deep entries", f"{MAX_H5_OBJECTS}, {MAX_H5_DEPTH} levels")
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                _refuse(path, f"a {type(link).__name__} {shown(name)} in {WEIGHTS}", "arrays stored in the file")
            entry = group[name]
            if isinstance(entry, h5py.Group):
                waiting.append((entry, depth + 1))
                continue
            if not _is_plain_array(entry):
                _refuse(path, f"{shown(name)} in {WEIGHTS}, a {shown(entry)}", "float32 arrays stored in the file")
            yield entry


def _is_plain_array(entry: Any) -> bool:
    import h5py

    # What is chunked can be compressed, or filtered by a plug-in that HDF5 would load.
    return (
        isinstance(entry, h5py.Dataset)
        and entry.dtype == "float32"
        and entry.shape is not None
        and entry.chunks is None
        and not entry.external
        and not entry.is_virtual
    )


def _refuse(path: Path, found: str, expected: str) -> NoReturn:
    raise DamagedModelError(
        f"The model file {path.name} is not one that this project saves: found {found}. Expected {expected}. "
        "It was not loaded; register a fresh model, by running its study again."
    )
