"""The promises of loading a model file: what this project saves loads, and nothing else reaches Keras."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from fashion_study.data.dataset import ImageShape
from fashion_study.errors import BadInputError, DamagedModelError
from fashion_study.training import model as model_module
from fashion_study.training.model import build_model, build_network, to_float32
from fashion_study.training.model_file import load_model_file
from fashion_study.trial import Hyperparameters, Precision

IMAGE_SHAPE = (28, 28, 1)
SMALL = Hyperparameters(filters_1=4, filters_2=6, filters_3=8, dense_units=12)
Config = dict[str, Any]
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.keras"
    to_float32(build_model(SMALL, IMAGE_SHAPE, 10), SMALL).save(path)
    return path


@pytest.fixture(scope="module")
def members(saved: Path) -> Members:
    with zipfile.ZipFile(saved) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, members: Members, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("setting", "theirs"),
    [("floatx", "float64"), ("image_data_format", "channels_first"), ("epsilon", 1e-3), ("max_steps_per_epoch", 1)],
)
def test_a_notebook_s_other_setting_of_keras_is_refused(setting: str, theirs: object, saved: Path) -> None:
    change = getattr(keras.config, f"set_{setting}")
    before = getattr(keras.config, setting)()
    change(theirs)
    try:
        with pytest.raises(BadInputError, match=rf"its {setting} is {theirs!r}\. .* Call keras.config.set_{setting}"):
            load_model_file(saved)
    finally:
        change(before)


def test_a_notebook_with_another_backend_of_keras_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(BadInputError, match=r"its backend is 'torch'.* Set KERAS_BACKEND=tensorflow"):
        load_model_file(saved)


def refusal(path: Path) -> str:
    with pytest.raises(DamagedModelError, match="not loaded") as refused:
        load_model_file(path)
    return str(refused.value)


def with_config(members: Members, change: Callable[[Config], None]) -> Members:
    config = json.loads(members["config.json"])
    change(config)
    return {**members, "config.json": json.dumps(config).encode()}


def loads_to_the_same(model: keras.Model, path: Path) -> None:
    loaded = load_model_file(path)
    images = np.random.default_rng(0).integers(0, 256, (5, *model.input_shape[1:])).astype(np.uint8)
    np.testing.assert_array_equal(loaded(images), model(images))
    assert not loaded.compiled


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("input_scale", ["raw", "unit"])
@pytest.mark.parametrize(("image_shape", "classes"), [((28, 28, 1), 10), ((32, 40, 3), 3)])
def test_every_model_of_the_builder_loads(
    input_scale: str, precision: Precision, image_shape: ImageShape, classes: int, tmp_path: Path
) -> None:
    params = Hyperparameters.model_validate(SMALL.model_dump() | {"input_scale": input_scale})
    model = to_float32(build_model(params, image_shape, classes, precision), params)
    model.save(tmp_path / "model.keras")
    loads_to_the_same(model, tmp_path / "model.keras")


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.BatchNormalization(name="more"),
        lambda: keras.layers.Dropout(0.2, name="more"),
        lambda: keras.layers.Conv2D(5, 1, activation="gelu", name="more"),
        lambda: keras.layers.Dense(7, name="more"),
    ],
    ids=["batch normalization", "dropout", "convolution", "dense"],
)
@pytest.mark.parametrize("index", [2, 9])
def test_a_layer_more_in_the_builder_is_all_it_takes(
    layer: Callable[[], keras.layers.Layer], index: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = model_module._layers

    def with_one_more(*args: Any, **options: Any) -> list[keras.layers.Layer]:
        layers = built(*args, **options)
        return [*layers[:index], layer(), *layers[index:]]

    monkeypatch.setattr(model_module, "_layers", with_one_more)
    model = build_network(SMALL, IMAGE_SHAPE, 10)
    model.save(tmp_path / "model.keras")
    loads_to_the_same(model, tmp_path / "model.keras")
    monkeypatch.undo()
    assert "those of the shared builder" in refusal(tmp_path / "model.keras")


def _renamed(config: Config) -> None:
    for index, layer in enumerate(config["config"]["layers"]):
        layer["config"]["name"] = f"layer_{index}"


def _as_older_versions_write(config: Config) -> None:
    """Leave out what has its default, and write the precision by its name."""
    for key in ("trainable", "dtype", "build_input_shape"):
        del config["config"][key]
    for layer in config["config"]["layers"]:
        layer.pop("build_config", None)
        settings = layer["config"]
        settings["dtype"] = "float32"
        for key in ("optional", "groups", "data_format", "quantization_config", "bias_initializer", "trainable"):
            settings.pop(key, None)
        if "kernel_initializer" in settings:
            settings["kernel_initializer"]["config"] = {"seed": None}


def _with_settings_of_newer_versions(config: Config) -> None:
    for layer in config["config"]["layers"]:
        layer["config"]["something_new"] = None


@pytest.mark.parametrize("change", [_renamed, _as_older_versions_write, _with_settings_of_newer_versions])
def test_names_defaults_and_nulls_do_not_matter(
    change: Callable[[Config], None], saved: Path, members: Members, tmp_path: Path
) -> None:
    path = packed(tmp_path / "model.keras", with_config(members, change))
    loads_to_the_same(load_model_file(saved), path)


@pytest.mark.parametrize(
    ("index", "key"), [(0, "batch_shape"), (2, "kernel_size"), (8, "activation"), (10, "units"), (11, "activation")]
)
def test_a_lacking_setting_that_is_not_the_default_is_refused(
    index: int, key: str, members: Members, tmp_path: Path
) -> None:
    changed = with_config(members, lambda config: _layer(config, index)["config"].pop(key))
    refusal(packed(tmp_path / "model.keras", changed))


def test_a_model_must_be_that_of_its_run(saved: Path) -> None:
    assert load_model_file(saved, SMALL.model_copy(update={"epochs": 3})).count_params() > 0
    for other, found in (({"dense_units": 13}, "'units' 12"), ({"input_scale": "unit"}, "'Identity'")):
        with pytest.raises(DamagedModelError, match=found):
            load_model_file(saved, SMALL.model_copy(update=other))


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_a_layer_that_a_parameter_switches_on_may_be_off(
    optimizer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = model_module._layers

    def with_dropout_for_adam(params: Hyperparameters, *args: Any) -> list[keras.layers.Layer]:
        *layers, last = built(params, *args)
        return [*layers, *([keras.layers.Dropout(0.2)] if params.optimizer == "adam" else []), last]

    monkeypatch.setattr(model_module, "_layers", with_dropout_for_adam)
    params = Hyperparameters.model_validate(SMALL.model_dump() | {"optimizer": optimizer})
    model = build_network(params, IMAGE_SHAPE, 10)
    model.save(tmp_path / "model.keras")
    assert len(load_model_file(tmp_path / "model.keras", params).layers) == len(model.layers)


def test_a_run_s_model_has_the_shape_and_classes_of_its_file(members: Members, tmp_path: Path) -> None:
    for change in (
        lambda config: _layer(config, 0)["config"].update(batch_shape="[None, 28, 28, 1]"),
        lambda config: _layer(config, 0)["config"].update(batch_shape=[None, 28, 28, 10**9]),
        lambda config: _layer(config, 11)["config"].update(units=10**9),
        lambda config: config["config"]["layers"].clear(),
    ):
        path = packed(tmp_path / "model.keras", with_config(members, change))
        with pytest.raises(DamagedModelError, match="not loaded"):
            load_model_file(path, SMALL)


def test_the_builder_s_largest_model_loads(tmp_path: Path) -> None:
    params = Hyperparameters(filters_1=512, filters_2=512, filters_3=512, dense_units=4096)
    model = to_float32(build_model(params, IMAGE_SHAPE, 10), params)
    path = tmp_path / "model.keras"
    model.save(path)
    assert load_model_file(path).count_params() == model.count_params()


@pytest.mark.parametrize("name", ["model.h5", "model.pkl", "model", "model.keras.zip"])
def test_no_other_kind_of_file_is_looked_into(name: str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(saved.read_bytes())
    assert "Expected a .keras file" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 and no more"])
def test_a_file_that_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(content)
    assert "no readable archive" in refusal(path)


def test_a_missing_and_a_cut_off_file_are_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    assert "no readable archive" in refusal(path)
    path.write_bytes(saved.read_bytes()[:-2000])
    assert "no readable archive" in refusal(path)


def test_a_flipped_byte_is_refused(saved: Path, tmp_path: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "model.keras"
    path.write_bytes(content)
    assert "Bad CRC-32" in refusal(path)


@pytest.mark.parametrize("extra", ["../../evil.py", "/etc/cron.d/evil", "assets/vocabulary.txt", "model.weights.npz"])
def test_an_archive_with_another_member_is_refused_by_its_name(extra: str, members: Members, tmp_path: Path) -> None:
    assert extra in refusal(packed(tmp_path / "model.keras", {**members, extra: b"x"}))


def test_an_archive_without_its_weights_is_refused(members: Members, tmp_path: Path) -> None:
    rest = {name: content for name, content in members.items() if name != "model.weights.h5"}
    assert "the members" in refusal(packed(tmp_path / "model.keras", rest))


def test_a_member_that_is_there_twice_is_refused(members: Members, tmp_path: Path) -> None:
    path = packed(tmp_path / "model.keras", members)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore", UserWarning)
        archive.writestr("config.json", members["config.json"])
    assert "each once" in refusal(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(members: Members, tmp_path: Path) -> None:
    bomb = {**members, "model.weights.h5": bytes(50_000_000)}
    path = packed(tmp_path / "model.keras", bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert "compressed" in refusal(path)


def test_a_config_beyond_every_size_is_refused(members: Members, tmp_path: Path) -> None:
    padded = {**members, "config.json": members["config.json"] + b" " * 200_000}
    assert "at most 200,000" in refusal(packed(tmp_path / "model.keras", padded))


def _layer(config: Config, index: int) -> Config:
    layer: Config = config["config"]["layers"][index]
    return layer


def _lambda(config: Config) -> None:
    code = {"class_name": "__lambda__", "config": {"code": "4wAAAA==", "defaults": None, "closure": None}}
    _layer(config, 1).update(class_name="Lambda", config={"name": "evil", "function": code})


def _import(config: Config) -> None:
    _layer(config, 1).update(module="os", class_name="system", config={"command": "true"})


def _function(config: Config) -> None:
    function = {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"}
    _layer(config, 2)["config"]["activation"] = function


def _saved_model(config: Config) -> None:
    _layer(config, 1).update(class_name="TFSMLayer", config={"name": "evil", "filepath": "/tmp/evil"})


def _registered(config: Config) -> None:
    _layer(config, 1)["registered_name"] = "my_package>Evil"


def _legacy(config: Config) -> None:
    del _layer(config, 1)["module"]


def _functional(config: Config) -> None:
    config["class_name"] = "Functional"


def _compiled(config: Config) -> None:
    config["compile_config"] = {"optimizer": "rmsprop", "loss": "mse"}


def _initializer(config: Config) -> None:
    _layer(config, 2)["config"]["kernel_initializer"]["class_name"] = "Constant"


def _hidden(config: Config) -> None:
    config["config"]["extra"] = [[{"deep": {"module": "os", "class_name": "popen", "config": {}}}]]


def _nested_model(config: Config) -> None:
    _layer(config, 9)["config"]["layer"] = json.loads(json.dumps(_layer(config, 10)))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_lambda, "__lambda__|Lambda"),
        (_import, "'system'"),
        (_function, "'builtins'"),
        (_saved_model, "TFSMLayer"),
        (_registered, "my_package>Evil"),
        (_legacy, "an Identity with the module None"),
        (_functional, "Functional"),
        (_compiled, "compile_config"),
        (_initializer, "Constant"),
        (_hidden, "popen"),
        (_nested_model, "no such setting"),
    ],
)
def test_a_config_with_any_but_the_builder_s_layers_is_refused(
    change: Callable[[Config], None], found: str, members: Members, tmp_path: Path
) -> None:
    message = refusal(packed(tmp_path / "model.keras", with_config(members, change)))
    assert any(word in message for word in found.split("|"))


@pytest.mark.parametrize(
    ("index", "key", "value"),
    [
        (2, "filters", 513),
        (2, "filters", 10**12),
        (2, "filters", float("nan")),
        (2, "filters", "4"),
        (2, "filters", None),
        (2, "kernel_size", [1, 1]),
        (3, "strides", [1, 1]),
        (3, "pool_size", [1, 1]),
        (10, "units", 10**9),
        (10, "activation", "my_activation"),
        (11, "units", 10**9),
        (11, "units", True),
        (0, "batch_shape", [None, 28000, 28000, 1]),
        (11, "dtype", {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}),
        (11, "dtype", "float64"),
        (11, "kernel_constraint", {"class_name": "MaxNorm"}),
        (11, "lora_rank", 4),
        (11, "layers", []),
    ],
)
def test_a_setting_that_the_builder_never_gives_is_refused(
    index: int, key: str, value: object, members: Members, tmp_path: Path
) -> None:
    changed = with_config(members, lambda config: _layer(config, index)["config"].update({key: value}))
    refusal(packed(tmp_path / "model.keras", changed))


@pytest.mark.parametrize(
    ("index", "extra"),
    [
        (11, {"build_config": {"input_shape": [None, 10**11]}}),
        (2, {"build_config": {"input_shape": [None, 28, 28, 10**9]}}),
        (10, {"build_config": {"shapes_dict": {"input_shape": [None, 10**11]}}}),
        (5, {"compile_config": {"optimizer": "rmsprop"}}),
        (5, {"shared_object_id": 7}),
    ],
)
def test_a_layer_to_be_built_for_another_shape_is_refused(
    index: int, extra: Config, members: Members, tmp_path: Path
) -> None:
    changed = with_config(members, lambda config: _layer(config, index).update(extra))
    assert "and nothing else" in refusal(packed(tmp_path / "model.keras", changed))


def test_a_file_of_more_bytes_than_any_model_has_is_not_read(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(saved.read_bytes())
    with path.open("r+b") as file:
        file.truncate(10**12)  # A sparse file: nothing of it is stored.
    assert "1,000,000,000,000 bytes" in refusal(path)


@pytest.mark.parametrize("drop", [1, 3, 9])
def test_layers_in_another_order_are_refused(drop: int, members: Members, tmp_path: Path) -> None:
    changed = with_config(members, lambda config: config["config"]["layers"].pop(drop))
    assert "those of the shared builder, in its order" in refusal(packed(tmp_path / "model.keras", changed))


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b"null", b"{}", b'{"config": 3}', b"[" * 100_000, b'{"a":' * 30_000, b"\xff\xfe"]
)
def test_a_config_that_is_no_config_is_refused(text: bytes, members: Members, tmp_path: Path) -> None:
    refusal(packed(tmp_path / "model.keras", {**members, "config.json": text}))


def _external_link(file: h5py.File, secret: Path) -> None:
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = h5py.ExternalLink(str(secret), "/data")


def _soft_link(file: h5py.File, _: Path) -> None:
    del file["layers/dense/vars/1"]
    file["layers/dense/vars/1"] = h5py.SoftLink("/layers/conv2d/vars/1")


def _external_storage(file: h5py.File, secret: Path) -> None:
    del file["layers/dense/vars/1"]
    file.create_dataset("layers/dense/vars/1", (12,), "float32", external=[(str(secret), 0, 48)])


def _virtual(file: h5py.File, secret: Path) -> None:
    del file["layers/dense/vars/1"]
    layout = h5py.VirtualLayout((12,), "float32")
    layout[:] = h5py.VirtualSource(str(secret), "data", (12,))
    file.create_virtual_dataset("layers/dense/vars/1", layout)


def _compressed(file: h5py.File, _: Path) -> None:
    file.create_dataset("layers/bomb", (10_000, 10_000), "float32", chunks=(1000, 1000), compression="gzip")


def _declared(file: h5py.File, _: Path) -> None:
    # Nothing is stored before something is written.
    file.create_dataset("layers/bomb", (200_000, 10_000), "float32")


def _text(file: h5py.File, _: Path) -> None:
    file.create_dataset("layers/text", (1,), h5py.string_dtype())


def _itself(file: h5py.File, _: Path) -> None:
    file["layers/dense/again"] = file["layers"]


def _deep(file: h5py.File, _: Path) -> None:
    file.create_group("a/" * 2_000)


def _many(file: h5py.File, _: Path) -> None:
    for number in range(500):
        file.create_group(f"layers/{number}")


def _one_too_many(file: h5py.File, _: Path) -> None:
    file["layers/dense/vars/2"] = np.zeros(12, dtype="float32")


def _one_missing(file: h5py.File, _: Path) -> None:
    del file["layers/dense/vars/1"]


def _of_another_type(file: h5py.File, _: Path) -> None:
    del file["layers/dense/vars/1"]
    file["layers/dense/vars/1"] = np.zeros(12, dtype="float64")


def _misplaced(file: h5py.File, _: Path) -> None:
    file.move("layers/dense/vars/1", "layers/dense/elsewhere")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_external_link, "ExternalLink"),
        (_soft_link, "SoftLink"),
        (_external_storage, "numbers stored in the file"),
        (_virtual, "numbers stored in the file"),
        (_compressed, "numbers stored in the file"),
        (_declared, "bytes of weights declared"),
        (_text, "numbers stored in the file"),
        (_itself, "one name"),
        (_deep, "many or deep entries"),
        (_many, "many or deep entries"),
        (_one_too_many, "weights that do not fit the layers: [((12,), 'float32')]"),
        (_one_missing, "Expected [((12,), 'float32')]"),
        (_of_another_type, "weights that do not fit the layers"),
        (_misplaced, "weights that Keras cannot load"),
    ],
)
def test_weights_that_are_not_the_model_s_own_are_refused(
    change: Callable[[h5py.File, Path], None], found: str, members: Members, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["data"] = np.zeros((72, 12), dtype="float32")
    weights = io.BytesIO(members["model.weights.h5"])
    with h5py.File(weights, "a") as file:
        change(file, secret)
    path = packed(tmp_path / "model.keras", {**members, "model.weights.h5": weights.getvalue()})
    assert found in refusal(path)


def test_weights_of_another_model_are_refused(members: Members, tmp_path: Path) -> None:
    wider = Hyperparameters.model_validate(SMALL.model_dump() | {"dense_units": 13})
    to_float32(build_model(wider, IMAGE_SHAPE, 10), wider).save(tmp_path / "other.keras")
    with zipfile.ZipFile(tmp_path / "other.keras") as archive:
        weights = archive.read("model.weights.h5")
    path = packed(tmp_path / "model.keras", {**members, "model.weights.h5": weights})
    assert "weights that do not fit the layers" in refusal(path)


def test_what_is_no_hdf5_is_refused(members: Members, tmp_path: Path) -> None:
    path = packed(tmp_path / "model.keras", {**members, "model.weights.h5": b"no weights"})
    assert "cannot be read" in refusal(path)


def test_a_model_with_a_lambda_saved_by_keras_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Lambda(lambda pixels: pixels)]).save(path)
    with pytest.raises(DamagedModelError, match="Lambda"):
        load_model_file(path)
