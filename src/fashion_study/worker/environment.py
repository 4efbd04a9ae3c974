"""The environment of a training, which decides its last bits besides parameters, seed and images."""

import os
import platform
import re
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

CPU_INFO = Path("/proc/cpuinfo")
# The sets for which TensorFlow and oneDNN have kernels of their own.
INSTRUCTION_SETS = re.compile(r"avx\w*|amx\w*|fma|asimd|asimddp|sve\w*|bf16|i8mm")


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a process that trains on `threads` threads, as tags of a run."""
    cpu, instruction_sets = _processor()
    return {
        "threads": str(threads),
        "cpu": cpu,
        "instruction_sets": instruction_sets,
        "device": _device(),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "TensorFlow's default"),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def _processor() -> tuple[str, str]:
    """Return the model of the processor, and those of its instruction sets that matter here."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # Linux only.
        return platform.processor() or platform.machine(), "unknown"
    attrs = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = attrs.get("flags", attrs.get("Features", "")).split()
    return attrs.get("model name", platform.machine()), " ".join(sorted(filter(INSTRUCTION_SETS.fullmatch, flags)))


def _device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")) if gpus else "CPU"
