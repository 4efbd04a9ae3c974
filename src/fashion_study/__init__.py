"""A tracked hyperparameter study of a Keras CNN: `from fashion_study import StudyConfig, run_study`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fashion_study.config import StudyConfig
    from fashion_study.study.run import StudyResult, run_study

__all__ = ["StudyConfig", "StudyResult", "run_study"]


def __getattr__(name: str) -> Any:
    # Lazy, so that a command's --help and its refusals do not wait for MLflow and Optuna.
    if name == "StudyConfig":
        from fashion_study.config import StudyConfig

        return StudyConfig
    if name in ("run_study", "StudyResult"):
        from fashion_study.study import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
