"""Model files, loaded without trusting them: no description of a network but the builder's own reaches Keras.

Keras's safe mode refuses code in a file, and has had holes before. So a file only says which sizes its model has. The
builder builds that model, every setting in the file must be the built one's, and then the file's weights are loaded.
"""

import io
import json
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from pydantic import Field, ValidationError

from fashion_study.errors import BadInputError, DamagedModelError
from fashion_study.libraries import import_without_stderr
from fashion_study.text import shown
from fashion_study.trial import Hyperparameters

if TYPE_CHECKING:
    import h5py
    import keras

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
# What Keras writes, uncompressed, and how large it may be: the builder makes no model of more than 120 MB of weights.
MEMBERS = {"metadata.json": 10_000, CONFIG: 200_000, WEIGHTS: 128 * 2**20}
# With room for the archive's own list of its members, which is read before anything else.
MAX_FILE = sum(MEMBERS.values()) + 100_000
# Keras writes fewer. HDF5 takes minutes for the names of a deep chain of groups.
MAX_H5_OBJECTS, MAX_H5_DEPTH = 200, 4
# What the description of a layer may lack.
OPTIONAL = {"registered_name", "build_config", "compile_config"}

Config = dict[str, Any]
# How many arrays there are of a shape and a type of numbers.
Arrays = Counter[tuple[tuple[int, ...], str]]


class _Sizes(Hyperparameters):
    """The arguments of the builder, within the limits that a file must keep."""

    height: Annotated[int, Field(strict=True, ge=1, le=1_024)]
    width: Annotated[int, Field(strict=True, ge=1, le=1_024)]
    channels: Annotated[int, Field(strict=True, ge=1, le=16)]
    classes: Annotated[int, Field(strict=True, ge=2, le=1_000)]

    def build(self) -> "keras.Model":
        from fashion_study.training.model import build_network, with_views

        network = build_network(self, (self.height, self.width, self.channels), self.classes)
        return with_views(network, self.views)

    def outline(self) -> "keras.Model":
        """Build a model whose variables have shapes and no values, so that it takes no memory whatever its sizes.

        In a thread of its own: Keras remembers for each thread the variables that it has yet to create.
        """
        import keras

        def build() -> "keras.Model":
            with keras.StatelessScope(initialize_variables=False):
                return self.build()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(build).result()


# A number for each size that no setting of the network has: it shows where the builder writes that size.
MARKED = ("filters_1", "filters_2", "filters_3", "dense_units", "height", "width", "channels", "classes")
MARKS = {name: 10_007 + index for index, name in enumerate(MARKED)}
NAMES: dict[float, str] = {mark: name for name, mark in MARKS.items()}


def load_model_file(path: Path, params: Hyperparameters | None = None) -> "keras.Model":
    """Build the model that a `.keras` file of this project describes, and load the file's weights into it.

    The model is float32 and not compiled. It takes raw pixels (n, height, width, channels) and returns probabilities
    (n, classes). `params` are those of the run that logged it; without them the sizes are read from the file.

    Verify the file's SHA-256 first (`Registry.fetch`): this proves that it is harmless, not that it is the right one.

    Raises:
        DamagedModelError: the file is not what the builder builds and Keras saves.
    """
    # The quick checks first: TensorFlow takes seconds to import.
    members = _members(path)
    config = _parsed(members[CONFIG])
    arrays = _stored_arrays(members[WEIGHTS])
    import_without_stderr("fashion_study.training.model")
    try:
        sizes = _sizes(config, params)
        outline = sizes.outline()
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        _refuse(f"{problem['loc'][0]} = {shown(problem['input'])}", f"a value within its range: {problem['msg']}")
    except BadInputError as error:
        _refuse(f"sizes for which there is no network ({error})", "sizes within its limits")
    _check_config(config, outline)
    _check_arrays(arrays, outline)
    model = sizes.build()
    with TemporaryDirectory() as folder:
        Path(folder, WEIGHTS).write_bytes(members[WEIGHTS])
        try:
            model.load_weights(Path(folder, WEIGHTS))
        # The arrays have the right shapes, but lie in the wrong places.
        except Exception as error:
            _refuse(f"weights that Keras cannot load ({type(error).__name__}: {error})", "each in its layer's group")
    return model


def _members(path: Path) -> dict[str, bytes]:
    """Read the archive's members, none of which may be compressed: so none is larger than the file."""
    if path.suffix != ".keras":
        _refuse(f"the ending {path.suffix!r}", "a .keras file")
    try:
        if (length := path.stat().st_size) > MAX_FILE:
            _refuse(f"{length:,} bytes", f"at most {MAX_FILE:,}")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if sorted(names) != sorted(MEMBERS):
                _refuse(f"the members {shown(names)}", f"{sorted(MEMBERS)}, each once")
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                    _refuse(f"{entry.filename} compressed", "members stored as they are")
                if entry.file_size > (most := MEMBERS[entry.filename]):
                    _refuse(f"{entry.filename} of {entry.file_size:,} bytes", f"at most {most:,}")
            return {name: archive.read(name) for name in names}
    # `zipfile` raises NotImplementedError for a later version or method, RuntimeError for an encrypted archive.
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        _refuse(f"no readable archive ({error})", "a .keras file, which is a zip archive")


def _parsed(text: bytes) -> Config:
    """Parse the config of a model, which must describe layers with a config of each."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(f"a {CONFIG} that is no JSON ({error})", "the config of a Sequential model")
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else None
    if not (isinstance(layers, list) and layers) or not all(
        isinstance(layer, dict) and isinstance(layer.get("config"), dict) for layer in layers
    ):
        _refuse(f"a {CONFIG} with {shown(config)}", "the config of a Sequential model")
    return dict(config)


def _stored_arrays(content: bytes) -> Arrays:
    """Read the shapes of the arrays; refuse every way in which HDF5 can point outside the file or to itself."""
    import h5py

    entries: dict[str, Any] = {}
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            links = _links(file)
            file.visititems(entries.__setitem__)
            for name, link in links.items():
                if not isinstance(link, h5py.HardLink) or name not in entries:
                    _refuse(f"a {type(link).__name__} {shown(name)} in {WEIGHTS}", "arrays that each have one name")
            arrays = {name: entry for name, entry in entries.items() if not isinstance(entry, h5py.Group)}
            for name, entry in arrays.items():
                # What is chunked can be compressed, or filtered by a plug-in that HDF5 would load.
                if (
                    not isinstance(entry, h5py.Dataset)
                    or entry.dtype.kind not in "fiu"
                    or entry.shape is None
                    or entry.chunks is not None
                    or entry.external
                    or entry.is_virtual
                ):
                    _refuse(f"{shown(name)} in {WEIGHTS}, a {shown(entry)}", "numbers stored in the file")
            # An array may declare any size and store nothing of it.
            if (total := sum(entry.nbytes for entry in arrays.values())) > len(content):
                _refuse(f"{total:,} bytes of weights declared in {len(content):,}", "all of them stored")
            return Counter((entry.shape, str(entry.dtype)) for entry in arrays.values())
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        _refuse(f"{WEIGHTS} that cannot be read ({error})", "weights in HDF5")


def _links(file: "h5py.File") -> dict[str, Any]:
    links: dict[str, Any] = {}

    def note(name: str, link: Any) -> str | None:
        links[name] = link
        # Anything but None ends the walk; an exception would not come through HDF5.
        return name if len(links) > MAX_H5_OBJECTS or name.count("/") >= MAX_H5_DEPTH else None

    if file.visititems_links(note) is not None:
        _refuse(f"{WEIGHTS} with many or deep entries", f"at most {MAX_H5_OBJECTS}, on {MAX_H5_DEPTH} levels")
    return links


def _sizes(config: Config, params: Hyperparameters | None) -> _Sizes:
    """Take the sizes of the run's parameters, else read them from the places in which the builder writes its own.

    From a file alone only models of the default layers can be read: MLflow has the parameters of all that came later.
    """
    found = config["config"]["layers"]
    if params is not None:
        shape = found[0]["config"].get("batch_shape")
        classes = next((layer["config"]["units"] for layer in reversed(found) if "units" in layer["config"]), None)
        _, height, width, channels = shape if isinstance(shape, list) and len(shape) == 4 else 4 * [None]
        sizes = {"height": height, "width": width, "channels": channels, "classes": classes}
        return _Sizes.model_validate(params.model_dump() | sizes)
    kinds = [layer.get("class_name") for layer in found]
    for input_scale in ("raw", "unit"):
        marked = _Sizes.model_construct(None, **MARKS, input_scale=input_scale)
        layers = _config(marked.outline())["config"]["layers"]
        if kinds == [layer["class_name"] for layer in layers]:
            break
    else:
        _refuse(f"the layers {shown(kinds)}", "those of the shared builder, in its order")
    sizes = {"input_scale": input_scale}
    for layer, described in zip(layers, found, strict=True):
        given = _numbers(described["config"])
        sizes |= {NAMES[mark]: given.get(at) for at, mark in _numbers(layer["config"]).items() if mark in NAMES}
    return _Sizes.model_validate(sizes)


def _numbers(settings: Config) -> dict[tuple[str, int], float]:
    """Return the numbers among a layer's settings, and in lists among them, by their positions."""
    return {
        (key, index): number
        for key, value in settings.items()
        for index, number in enumerate(value if isinstance(value, list) else [value])
        if isinstance(number, int | float)
    }


def _config(model: "keras.Model") -> Config:
    return dict(json.loads(model.to_json()))


def _check_config(found: Config, outline: "keras.Model") -> None:
    import keras

    built = _config(outline)
    names, expected_names = ([layer.get("class_name") for layer in one["config"]["layers"]] for one in (found, built))
    if names != expected_names:
        _refuse(f"the layers {shown(names)}", f"{shown(expected_names)}, those of the shared builder")
    if found.get("class_name") == built["class_name"] == "Functional":
        try:
            found, built = _with_numbered_layers(found), _with_numbered_layers(built)
        except RecursionError:
            _refuse("links between layers that are nested too deeply", "those of the shared builder")
    parts = getattr(outline, "operations", outline.layers)
    kinds = {type(part).__name__: type(part) for part in parts} | {"InputLayer": keras.layers.InputLayer}
    _check_node(found, built, None)
    for node, expected in zip(found["config"]["layers"], built["config"]["layers"], strict=True):
        _check_node(node, expected, kinds[expected["class_name"]])


def _with_numbered_layers(config: Config) -> Config:
    """Return a functional model's description that links its layers by numbers instead of their names, which are free.

    A number is a tuple, which no file can contain.
    """
    layers = config["config"]["layers"]
    names = [str(layer.get("name")) for layer in layers]
    if len(set(names)) < len(names) or names != [str(layer["config"].get("name")) for layer in layers]:
        _refuse(f"the names of layers {shown(names)}", "one of its own for each layer")
    numbers = {name: (number,) for number, name in enumerate(names)}

    def numbered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: numbered(each) for key, each in value.items()}
        if isinstance(value, list):
            return [numbered(each) for each in value]
        return numbers.get(value, value) if isinstance(value, str) else value

    links = {
        key: numbered(value) for key, value in config["config"].items() if key in ("input_layers", "output_layers")
    }
    nodes = [
        layer | {"name": numbered(layer["name"]), "inbound_nodes": numbered(layer.get("inbound_nodes"))}
        for layer in layers
    ]
    return config | {"config": config["config"] | links | {"layers": nodes}}


def _check_node(found: Config, built: Config, kind: "type[keras.layers.Layer] | None") -> None:
    """Refuse a description of a layer, or of the model (None), that is not the built one's; names are free."""
    name = built["class_name"]
    what = f"{'an' if name[0] in 'AEIOU' else 'a'} {name} with"
    for key in sorted((found.keys() | built.keys()) - {"config"}):
        value = found.get(key)
        if value != built.get(key) and (value or key not in OPTIONAL):
            _refuse(f"{what} the {key} {shown(value)}", f"{shown(built.get(key))} and nothing else")
    given = {key: value for key, value in found["config"].items() if value is not None}
    expected = built["config"]
    defaults = expected if kind is None else _defaults(kind, expected, given)
    if kind is not None:
        parameters = signature(kind.__init__).parameters
        expected = {key: parameter.default for key, parameter in parameters.items()} | expected
    for key in sorted((given.keys() | defaults.keys()) - ({"name", "layers"} if kind is None else {"name"})):
        value = given.get(key, defaults.get(key))
        if not _same(value, expected.get(key)):
            allowed = shown(expected[key]) if key in expected else "no such setting"
            _refuse(f"{what} {shown(key)} {shown(value)}", allowed)


def _defaults(kind: "type[keras.layers.Layer]", built: Config, given: Config) -> Config:
    """Return the built layer's settings, with Keras's defaults for those that a file lacks."""
    import keras

    kept = {key: value for key, value in built.items() if key in given or value is None}
    try:
        return dict(keras.saving.serialize_keras_object(kind.from_config(kept))["config"])
    except (TypeError, ValueError):
        return dict.fromkeys(built)  # One that has no default.


def _same(found: Any, built: Any) -> bool:
    """Compare two settings. Null is the same as nothing, and an object that layers share has a number in a file."""
    if not isinstance(built, dict):
        return bool(found == built)
    if not isinstance(found, dict):
        # Earlier versions of Keras write a precision by its name.
        return built.get("class_name") == "DTypePolicy" and bool(found == built["config"]["name"])
    keys = (found.keys() | built.keys()) - {"shared_object_id"}
    return all(_same(found.get(key), built.get(key)) for key in keys)


def _check_arrays(found: Arrays, outline: "keras.Model") -> None:
    """Refuse weights unless there is one array for each variable of the model."""
    expected: Arrays = Counter((tuple(variable.shape), variable.dtype) for variable in outline.weights)
    if found != expected:
        left_over, missing = (shown(sorted(arrays)) for arrays in (found - expected, expected - found))
        _refuse(f"weights that do not fit the layers: {left_over}", missing)


def _refuse(found: str, expected: str) -> NoReturn:
    raise DamagedModelError(
        f"The model file is not one that this project saves: found {found}. Expected {expected}. It was not loaded; "
        "register a fresh model, by running its study again."
    )
