"""Compare Optuna, KerasTuner and random search at the same number of epochs."""

from pathlib import Path
from typing import Annotated

from typer import Option

from experiments._entry import StoreFolder, run
from fashion_study.config import DatasetChoice, PrecisionChoice
from fashion_study.engine_comparison import STORE, ComparisonConfig, compare_engines, table


def main(
    space: Annotated[str, Option(help="A name from search_spaces/, or a YAML file.")] = "baseline",
    dataset: Annotated[DatasetChoice, Option(help="auto: Fashion-MNIST where it can be had.")] = "auto",
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
    """Run a study of the same space and budget for each engine and seed, and say which found the better model.

    Every study is a complete one, to be seen in MLflow. Ctrl-C once ends cleanly; the same command goes on.

    Examples:

      python -m experiments.compare_engines --space smoke --dataset digits --epochs 30 --seeds 3

      python -m experiments.compare_engines --epochs 400 --limit-train 10000
    """
    config = ComparisonConfig(space, dataset, data_dir, epochs, seeds, workers, precision, limit_train, store)
    config.check()

    # Imported here: it brings Rich's display, and what follows MLflow and Optuna; a refusal must not wait for those.
    from fashion_study.study.progress import PipeSafeConsole, watch

    console = PipeSafeConsole()
    with watch(console) as observer:
        comparison = compare_engines(config, observer)
    for title, found in (("random", comparison.against_random), (comparison.winner, comparison.against_winner)):
        console.print(f"\nDifferences to {title}, seed by seed (points of validation accuracy):", highlight=False)
        console.print(table(found).to_string(index=False), highlight=False, markup=False, soft_wrap=True)
    console.print(f"\nTable and figure: MLflow run {comparison.run_id}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
