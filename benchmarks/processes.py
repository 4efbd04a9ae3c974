"""The processes of a measurement: fresh ones, and none that reaches for the user's own servers."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# What would send a benchmark's studies and runs to servers of the user's.
USERS_SERVERS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "OPTUNA_STORAGE", "RAY_ADDRESS")


def use_own_stores() -> None:
    """Let this process and all that it starts keep to stores of their own, and report to nobody, every one alike."""
    for name in USERS_SERVERS:
        os.environ.pop(name, None)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


def in_a_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of a module in a process of its own, where nothing is imported yet, and return its answer.

    It begins with this one's environment: TensorFlow takes its threads and its policy once, glibc its settings.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()
