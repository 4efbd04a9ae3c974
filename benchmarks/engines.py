"""Optuna, KerasTuner and random search at the same number of epochs: whole studies, several seeds, one table.

`python -m benchmarks.engines` takes hours with its defaults. `python -m benchmarks` does not run it: its figures go to
an MLflow run beside the studies that it compares.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from experiments._entry import DatasetName, StoreFolder, run
from fashion_study.config import PrecisionChoice, StudyConfig
from fashion_study.errors import BadInputError, ExitCode, StudyError
from fashion_study.statistics import student_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

    from fashion_study.store.trials import TrialRecord
    from fashion_study.study.progress import Observer
    from fashion_study.study.run import StudyResult

# Each engine with its defaults, KerasTuner's other learning sampler, and random search that ends no trial early.
CONTENDERS: Mapping[str, Mapping[str, Any]] = {
    "optuna-tpe": {"engine": "optuna"},
    "keras-tuner-hyperband": {"engine": "keras-tuner"},
    "keras-tuner-bayesian": {"engine": "keras-tuner", "sampler": "bayesian"},
    "random": {"engine": "optuna", "sampler": "random", "pruner": "none"},
}
REFERENCE = "random"
# A store of its own: none of these studies is meant for use. None registers its best model either: where MLflow's data
# lies on a server, that would move the team's alias `challenger`.
STORE = Path("mlruns/comparison")
KIND = "engine comparison"
# The exact test goes through 2 to the power of so many choices of signs.
MOST_SEEDS = 16


@dataclass(frozen=True)
class ComparisonConfig:
    """The settings of a comparison: a study of so many epochs for each contender and seed."""

    space: str = "baseline"
    dataset: str = "auto"
    data_dir: Path | None = None
    epochs: int = 200
    seeds: int = 5
    workers: int | None = None
    precision: PrecisionChoice = "auto"
    limit_train: int | None = None
    store: Path = STORE

    def check(self) -> None:
        """Refuse settings that allow no comparison, before anything is opened.

        Raises:
            BadInputError: too few seeds or epochs, or a space that a contender cannot search.
        """
        if not 2 <= self.seeds <= MOST_SEEDS:
            raise BadInputError(f"--seeds is {self.seeds}. Expected 2 to {MOST_SEEDS}: one study of each says nothing.")
        for contender in CONTENDERS:
            space, _ = self.study(contender, 0).check()
            if self.epochs < space.max_epochs:
                raise BadInputError(
                    f"--epochs is {self.epochs}. Expected at least {space.max_epochs}, what one trial of space "
                    f"{space.name!r} can take."
                )

    def study(self, contender: str, seed: int) -> StudyConfig:
        """Return the configuration of one of the studies."""
        return StudyConfig(
            space=self.space,
            dataset=self.dataset,
            data_dir=self.data_dir,
            # More than the budget allows: a trial takes an epoch at least.
            trials=self.epochs + 1,
            epoch_budget=self.epochs,
            workers=self.workers,
            precision=self.precision,
            limit_train=self.limit_train,
            store=self.store,
            finalists=0,
            seed=seed,
            study=f"compare-{Path(self.space).stem}-{self.epochs}-{contender}-{seed}",
            **CONTENDERS[contender],
        )


@dataclass(frozen=True)
class Search:
    """A study's best objective after each trial, by the epochs of all trials until then."""

    contender: str
    seed: int
    trials: int
    best_after: tuple[tuple[int, float], ...]

    @property
    def best(self) -> float:
        """Return the best objective within the budget."""
        return self.best_after[-1][1]


@dataclass(frozen=True)
class PairedComparison:
    """A contender's best objectives over all seeds, and their differences to another's, seed by seed.

    `interval` is the 95 % confidence interval of the mean difference (Student's t over the pairs); `p` is that of the
    exact two-sided sign-flip test: with five seeds it cannot fall below 0.0625.
    """

    contender: str
    best: tuple[float, ...]
    trials: float
    difference: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Comparison:
    """All searches, the contenders against random search and against the winner, and the MLflow run with both."""

    searches: tuple[Search, ...]
    against_random: tuple[PairedComparison, ...]
    against_winner: tuple[PairedComparison, ...]
    run_id: str

    @property
    def winner(self) -> str:
        """Return the contender with the best mean."""
        return self.against_random[0].contender


def compare_engines(config: ComparisonConfig, observer: "Observer") -> Comparison:
    """Run, or continue, every study of a comparison, and record the result as an MLflow run beside them.

    The contenders take turns seed by seed, so that other work on the machine slows all of them alike.

    Raises:
        BadInputError: the settings allow no comparison.
        StudyError: it was stopped; the same command continues it.
    """
    from fashion_study.study.run import run_study

    config.check()
    searches, result = [], None
    for seed, contender in itertools.product(range(config.seeds), CONTENDERS):
        observer.note(f"comparison: {contender}, seed {seed}")
        result = run_study(config.study(contender, seed), observer, registers=False)
        if result.stopped_by is not None:
            raise _StoppedError(result)
        searches.append(search_within(contender, seed, result.records, config.epochs))
    assert result is not None
    best = {name: tuple(search.best for search in searches if search.contender == name) for name in CONTENDERS}
    trials = {name: mean(search.trials for search in searches if search.contender == name) for name in CONTENDERS}
    against_random = comparisons(best, trials, REFERENCE)
    against_winner = comparisons(best, trials, against_random[0].contender)
    run_id = _record(config, result, searches, against_random, against_winner)
    return Comparison(tuple(searches), against_random, against_winner, run_id)


class _StoppedError(StudyError):
    """A stop by a signal within one of the studies."""

    def __init__(self, result: "StudyResult") -> None:
        assert result.stopped_by is not None
        self.exit_code = ExitCode(128 + result.stopped_by)
        super().__init__(f"The comparison was stopped in study {result.name}. The same command goes on from there.")


def search_within(contender: str, seed: int, records: "Sequence[TrialRecord]", budget: int) -> Search:
    """Follow a study trial by trial, in the order in which they began, until the budget is spent."""
    epochs, trials, best, found = 0, 0, 0.0, []
    for record in sorted(records, key=lambda record: record.number):
        epochs += len(record.curve)
        if epochs > budget:
            break
        trials += 1
        best = max(best, record.objective or 0.0)
        found.append((epochs, best))
    return Search(contender, seed, trials, tuple(found))


def comparisons(
    best: Mapping[str, tuple[float, ...]], trials: Mapping[str, float], reference: str
) -> tuple[PairedComparison, ...]:
    """Compare each contender's best objectives with a reference's, the best mean first."""
    found = []
    for name, values in best.items():
        differences = [ours - theirs for ours, theirs in zip(values, best[reference], strict=True)]
        found.append(
            PairedComparison(
                name, values, trials[name], mean(differences), student_interval(differences), sign_flip_p(differences)
            )
        )
    return tuple(sorted(found, key=lambda comparison: -mean(comparison.best)))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the exact two-sided p-value of paired differences: of all 2^n choices of signs, those as far from 0."""
    import numpy as np
    from scipy.stats import permutation_test

    every = 2 ** len(differences)
    return float(permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=every).pvalue)


def table(comparisons: Sequence[PairedComparison]) -> "pd.DataFrame":
    """Lay comparisons out as a table, in points of 100."""
    import pandas as pd

    return pd.DataFrame(
        {
            "contender": comparison.contender,
            "mean best": round(100 * mean(comparison.best), 2),
            "lowest": round(100 * min(comparison.best), 2),
            "highest": round(100 * max(comparison.best), 2),
            "trials": round(comparison.trials, 1),
            "difference": round(100 * comparison.difference, 2),
            "95 % from": round(100 * comparison.interval[0], 2),
            "95 % to": round(100 * comparison.interval[1], 2),
            "p": round(comparison.p, 4),
        }
        for comparison in comparisons
    )


def _record(
    config: ComparisonConfig,
    last: "StudyResult",
    searches: Sequence[Search],
    against_random: Sequence[PairedComparison],
    against_winner: Sequence[PairedComparison],
) -> str:
    """Log a comparison to an MLflow run beside its studies, always the same one for the same settings."""
    from mlflow.entities import Metric, Param, RunTag

    assert last.experiment_id is not None
    client = last.store.client()
    settings = {key: str(getattr(config, key)) for key in ("space", "epochs", "seeds", "limit_train")}
    params = [Param(key, value) for key, value in settings.items()]
    run_id = _recorded(client, last.experiment_id, settings)
    if run_id is None:
        tags = {"kind": KIND, "mlflow.runName": f"{KIND} {config.space}"}
        run_id = str(client.create_run(last.experiment_id, tags=tags).info.run_id)
    metrics = [Metric(f"best_{each.contender}", mean(each.best), 0, 0) for each in against_random]
    client.log_batch(run_id, metrics, params, [RunTag("winner", against_random[0].contender)])
    client.log_text(run_id, table(against_random).to_csv(index=False), "against_random.csv")
    client.log_text(run_id, table(against_winner).to_csv(index=False), "against_winner.csv")
    studies = {str(config.study(search.contender, search.seed).study): search.best_after for search in searches}
    client.log_dict(run_id, studies, "searches.json")
    client.log_figure(run_id, figure(searches, config.epochs), "best_by_epochs.png")
    client.set_terminated(run_id)
    return run_id


def _recorded(client: "MlflowClient", experiment_id: str, settings: Mapping[str, str]) -> str | None:
    """Return the run of an earlier comparison with the same settings."""
    runs = client.search_runs([experiment_id], f"tags.kind = '{KIND}'")
    return next((str(run.info.run_id) for run in runs if run.data.params == settings), None)


def figure(searches: Sequence[Search], budget: int) -> "Figure":
    """Draw the best objective so far over the epochs taken: the mean over the seeds, and the lowest to the highest."""
    import numpy as np
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 4), layout="constrained")
    axes = drawn.subplots()
    epochs = np.arange(1, budget + 1)
    for name in CONTENDERS:
        curves = np.array([_step_function(each, epochs) for each in searches if each.contender == name])
        # Before a seed's first complete trial there is no mean of all.
        (line,) = axes.plot(epochs, 100 * curves.mean(axis=0), label=name)
        axes.fill_between(
            epochs, 100 * curves.min(axis=0), 100 * curves.max(axis=0), color=line.get_color(), alpha=0.15
        )
    axes.set(xlabel="epochs of all trials", ylabel="best validation accuracy so far (%)")
    axes.legend(frameon=False)
    return drawn


def _step_function(search: Search, epochs: Any) -> Any:
    import numpy as np

    steps = np.array([step for step, _ in search.best_after])
    values = np.array([np.nan, *(value if value > 0 else np.nan for _, value in search.best_after)])
    return values[np.searchsorted(steps, epochs, side="right")]


def main(
    space: Annotated[str, Option(help="A name from search_spaces/, or a YAML file.")] = "baseline",
    dataset: DatasetName = "auto",
    data_dir: Annotated[
        Path | None, Option(envvar="FASHION_MNIST_DIR", help="Folder with the four Fashion-MNIST files.")
    ] = None,
    epochs: Annotated[int, Option(help="What each study may take, all its trials together.")] = 200,
    seeds: Annotated[int, Option(help="Studies of each contender.")] = 5,
    workers: Annotated[
        int | None, Option(help="Processes that train; default one per GPU, else per core, as memory allows.")
    ] = None,
    precision: Annotated[PrecisionChoice, Option(help="auto: the faster one on this machine.")] = "auto",
    limit_train: Annotated[int | None, Option(help="Train on this many images only.")] = None,
    store: StoreFolder = STORE,
) -> None:
    """Run a study of the same space and budget for each engine and seed, and compare what they found.

    Every study is a complete one that MLflow shows. Ctrl-C once ends cleanly; the same command goes on.

    Examples:

      python -m benchmarks.engines --space smoke --dataset digits --epochs 30 --seeds 3

      python -m benchmarks.engines --epochs 400 --limit-train 10000
    """
    config = ComparisonConfig(space, dataset, data_dir, epochs, seeds, workers, precision, limit_train, store)
    config.check()

    # Imported here: a refusal must not wait for Rich, MLflow and Optuna.
    from rich.console import Console

    from fashion_study.study.progress import watch

    console = Console()
    with watch(console) as observer:
        comparison = compare_engines(config, observer)
    for title, found in (("random", comparison.against_random), (comparison.winner, comparison.against_winner)):
        console.print(f"\nDifferences to {title}, seed by seed (points of validation accuracy):", highlight=False)
        console.print(table(found).to_string(index=False), highlight=False, markup=False, soft_wrap=True)
    console.print(f"\nTable and figure: MLflow run {comparison.run_id}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
