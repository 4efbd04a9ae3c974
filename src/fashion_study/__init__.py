"""A tracked hyperparameter study of a Keras CNN: `from fashion_study import StudyConfig, run_study`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fashion_study.libraries import fix_environment

if TYPE_CHECKING:
    from fashion_study.config import StudyConfig
    from fashion_study.data.catalog import load_dataset, locate
    from fashion_study.space.file import load_space
    from fashion_study.study.leaderboard import table
    from fashion_study.study.progress import watch
    from fashion_study.study.run import StudyResult, run_study

__all__ = ["StudyConfig", "StudyResult", "load_dataset", "load_space", "locate", "run_study", "table", "watch"]

# Imported when they are used, so that a command's --help and its refusals do not wait for MLflow and Optuna.
MODULES = {
    "StudyConfig": "config",
    "StudyResult": "study.run",
    "load_dataset": "data.catalog",
    "load_space": "space.file",
    "locate": "data.catalog",
    "run_study": "study.run",
    "table": "study.leaderboard",
    "watch": "study.progress",
}


# Before anything here imports a library that reads its environment.
fix_environment()


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
