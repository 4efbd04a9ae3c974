"""Optuna's own figures of a whole study, drawn with Matplotlib so that MLflow's UI shows them as they are."""

import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState as OptunaState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Importances compare trials with each other; with fewer there is nothing to compare.
FEWEST_FOR_IMPORTANCES = 4


def study_figures(study: optuna.Study) -> Iterator[tuple[str, "Figure"]]:
    """Yield (name, figure) for every figure that the study has enough trials for."""
    import matplotlib.pyplot as plt
    import numpy as np
    from optuna.visualization import matplotlib as plots

    trials = study.get_trials(deepcopy=False)
    complete = sum(trial.state is OptunaState.COMPLETE for trial in trials)
    draw: dict[str, Callable[[optuna.Study], object]] = {}
    if any(trial.intermediate_values for trial in trials):
        draw["learning_curves"] = lambda study: plots.plot_intermediate_values(_as_trained(study, show_failed=True))
    if any(trial.state.is_finished() for trial in trials):
        draw["timeline"] = lambda study: plots.plot_timeline(_as_trained(study))
    if complete:
        draw["optimization_history"] = plots.plot_optimization_history
        draw["slices"] = plots.plot_slice
    if complete > 1:
        draw["parallel_coordinates"] = plots.plot_parallel_coordinate
    if complete >= FEWEST_FOR_IMPORTANCES:
        draw["parameter_importances"] = plots.plot_param_importances
    for name, plot in draw.items():
        with warnings.catch_warnings():
            # Optuna calls its Matplotlib figures experimental.
            warnings.simplefilter("ignore")
            axes = np.atleast_1d(np.asarray(plot(study), dtype=object))
        figure: Figure = axes.flat[0].figure
        width, height = figure.get_size_inches()
        figure.set_size_inches(max(width, 9), max(height, 5))
        yield name, figure
        plt.close(figure)


def _as_trained(study: optuna.Study, *, show_failed: bool = False) -> optuna.Study:
    """Copy a study, each finished trial beginning when a worker took it up and not when it was proposed.

    Optuna leaves failed trials out of the learning curves; `show_failed` passes them off as pruned ones.
    """
    copy = optuna.create_study(direction="maximize")
    for trial in study.get_trials():
        if trial.datetime_complete is not None:
            seconds = trial.user_attrs.get("seconds", 0.0)
            trial.datetime_start = trial.datetime_complete - timedelta(seconds=seconds)
        if show_failed and trial.state is OptunaState.FAIL:
            trial.state = OptunaState.PRUNED
        copy.add_trial(trial)
    return copy
