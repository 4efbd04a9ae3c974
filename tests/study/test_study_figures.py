"""The promises of a study's own figures, where its space is as large as they come."""

from optuna.storages import InMemoryStorage

from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.space.file import load_space
from fashion_study.store.trials import TrialStorage
from fashion_study.study.figures import MOST_AXES, study_figures
from fashion_study.trial import TrialResult, TrialSpec, TrialState


def test_of_many_hyperparameters_the_most_important_have_an_axis() -> None:
    space = load_space("wide")
    trial_storage = TrialStorage(InMemoryStorage(), "wide")
    engine = OptunaEngine(trial_storage, space, "random", "none")
    for _ in range(12):
        spec = engine.ask()
        assert isinstance(spec, TrialSpec)
        params = spec.hyperparameters
        objective = params.filters_3 / 200 + 0.1 * params.shift
        engine.tell(TrialResult(*spec.key, TrialState.COMPLETE, 1, objective))

    figures = dict(study_figures(trial_storage))

    assert len(space.parameters) > MOST_AXES
    sliced = [axes.get_xlabel() for axes in figures["slices"].axes if axes.get_xlabel()]
    assert len(sliced) == MOST_AXES
    assert {"filters_3", "shift"} <= set(sliced)
    assert "parallel_coordinates" in figures
