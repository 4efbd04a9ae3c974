"""What the libraries read by themselves: fixed before any of them is imported; the rest is recorded with a run."""

import logging
import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from fashion_study.errors import BadInputError
from fashion_study.paths import expanded

# With others a seed would train to something else, or to nothing.
FIXED = {"KERAS_BACKEND": "tensorflow", "KERAS_NNX_ENABLED": "0"}
LEFT_OUT = (
    # They end a training early.
    "KERAS_MAX_EPOCHS",
    "KERAS_MAX_STEPS_PER_EPOCH",
    # They round the numbers of a training that its run calls float32.
    "DNNL_DEFAULT_FPMATH_MODE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "TF_SET_ONEDNN_FPMATH_MODE",
    # They tie a trial's figures to another model, lose figures in silence, refuse long tags, or hide what has no
    # workspace.
    "MLFLOW_ACTIVE_MODEL_ID",
    "_MLFLOW_ACTIVE_MODEL_ID",
    "MLFLOW_ENABLE_ASYNC_LOGGING",
    "MLFLOW_ENABLE_WORKSPACES",
    "MLFLOW_TRUNCATE_LONG_VALUES",
    # It asks a package index for every model that is logged.
    "MLFLOW_LOCK_MODEL_DEPENDENCIES",
)
# What a user may set otherwise.
DEFAULTS = {
    # What MLflow would otherwise do unasked in every process that imports it.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A request to a server that is gone is repeated after 0, 2, 4, ... 64 s, for 126 s in all: long enough for a
    # restart. One that takes a request and never answers, or whose machine is off, is given up after six minutes
    # instead of twenty.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
# TensorFlow enables oneDNN's kernels by itself only on processors with instructions for neural networks; with AVX2
# alone they make a step 1.3 to 1.8 times as fast, too.
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# What chooses the kernels and threads of TensorFlow and of the libraries below it: the last bits, and how fast. Not all
# of TF_: Terraform's variables begin so too, and hold passwords.
DECIDES_BITS = re.compile(
    r"(?:CUBLAS|CUDNN|DNNL|EIGEN|MKL|NPY|OMP|ONEDNN|OPENBLAS|XLA)_|NVIDIA_TF32|"
    r"TF_(?:AUTO|CONV2D|CUDNN|DETERMINISTIC|DISABLE|ENABLE|FP16|FUNCTION|GPU|MATMUL|MKL|NUM|ONEDNN|OVERRIDE|USE|XLA)"
)
# The process keeps freed tensors: with glibc's defaults every step maps and unmaps its activations anew, which costs
# 5 to 10 % of a step. No effect on other allocators.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
# Figures are saved, not shown.
MATPLOTLIB = {"MPLBACKEND": "agg"}
# A folder without keras.json, in which Keras cannot write one either.
NO_KERAS_HOME = {"KERAS_HOME": os.devnull}
# What Keras has in a process must be what models are trained and saved with.
KERAS = {
    "backend": "tensorflow",
    "floatx": "float32",
    "epsilon": 1e-7,
    "image_data_format": "channels_last",
    "max_epochs": None,
    "max_steps_per_epoch": None,
}
WARNINGS, MLFLOW_LEVEL, CORES = "PYTHONWARNINGS", "MLFLOW_LOGGING_LEVEL", "LOKY_MAX_CPU_COUNT"


def fix_environment() -> None:
    """Fix in this process's environment, and so in those that it starts, what decides a training and its record."""
    for name in LEFT_OUT:
        os.environ.pop(name, None)
    kernels = {ONEDNN: "1"} if platform.machine() in {"x86_64", "AMD64"} else {}  # Elsewhere it was not measured.
    for name, value in (DEFAULTS | kernels).items():
        os.environ.setdefault(name, value)
    os.environ.update(FIXED)
    # An account without a home, such as a number that a container was given: MLflow cannot be imported without one.
    if str(expanded("~")) == "~":
        os.environ["HOME"] = "/nonexistent"
    # MLflow and joblib end a process in which these are no level and no number.
    if os.environ.get(MLFLOW_LEVEL, "INFO").upper() not in logging.getLevelNamesMapping():
        del os.environ[MLFLOW_LEVEL]
    if not os.environ.get(CORES, "1").strip().isdigit():
        del os.environ[CORES]


def fix_command() -> None:
    """Fix Matplotlib's backend and Python's warnings in a command's process; a notebook keeps its own."""
    os.environ.update(MATPLOTLIB)
    if any("error" in option for option in sys.warnoptions):
        # Libraries warn where they are imported. These are Python's own filters.
        os.environ.pop(WARNINGS, None)
        warnings.resetwarnings()
        for ignored in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", ignored)


def variable_behind(error: Exception) -> str | None:
    """Return the variable of MLflow's that is set to what MLflow does not take, where `error` is about that."""
    words = re.findall(r"\w+", str(error)) if isinstance(error, ValueError) else []
    return next((word for word in words if word.startswith("MLFLOW_") and word in os.environ), None)


def worker_environment() -> dict[str, str]:
    """Return the environment of a process that trains, started from a command or from a notebook."""
    kept = {name: value for name, value in os.environ.items() if name != WARNINGS}
    return {LOG_LEVEL: "2"} | kept | MALLOC | MATPLOTLIB | NO_KERAS_HOME


def left_to_the_user() -> str:
    """Return the variables that are set here and can change the last bits of a training, as `NAME=value ...`."""
    found = sorted(name for name in os.environ if DECIDES_BITS.match(name) and name != ONEDNN)
    return " ".join(f"{name}={os.environ[name]}" for name in found) or "none"


@contextmanager
def stderr_into(log: Path) -> Iterator[None]:
    """Send what is written to standard error while the block runs into a file; enter it before TensorFlow is imported.

    Some of it comes from native code before any setting is read, so the process's own descriptor is redirected.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(LOG_LEVEL, "2")
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def import_without_stderr(library: str) -> None:
    """Import TensorFlow, or a library that imports it, without its messages. Errors are raised as usual.

    TensorFlow takes GPU memory as it needs it: a study may be training on the same one. Keras reads no file of the
    user's.

    Raises:
        BadInputError: Keras was imported before, and has settings with which models are not trained here.
    """
    os.environ.setdefault(LOG_LEVEL, "3")  # Without a GPU the first operation writes errors at level 2.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    home = os.environ.get("KERAS_HOME")
    os.environ.update(NO_KERAS_HOME)
    try:
        with stderr_into(Path(os.devnull)):
            import_module(library)
    finally:
        os.environ.pop("KERAS_HOME")
        os.environ.update({} if home is None else {"KERAS_HOME": home})
    if (keras := sys.modules.get("keras")) is not None:
        _check_keras(keras.config)


def _check_keras(config: object) -> None:
    for name, expected in KERAS.items():
        if (found := getattr(config, name)()) != expected:
            call = f"Call keras.config.set_{name}({expected!r}) first"
            mend = "Set KERAS_BACKEND=tensorflow, and start the process anew" if name == "backend" else call
            raise BadInputError(
                f"Keras was imported before, and its {name} is {found!r}. Expected {expected!r}, with which every "
                f"model of this project is trained and saved. {mend}."
            )
