"""Train the blog post's model as it stands, in both input scales, and compare with its figures."""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Option

from experiments._entry import DataFolder, DatasetName, StoreFolder, Whole, run
from fashion_study.data.catalog import locate
from fashion_study.store.store import open_store


def main(
    seeds: Annotated[Whole, Option(min=1, help="Trainings per input scale; more than one shows the spread.")] = 1,
    dataset: DatasetName = "auto",
    data_dir: DataFolder = None,
    store: StoreFolder = Path("mlruns"),
    workers: Annotated[
        int | None, Option(min=1, help="Processes that train; default one per GPU, else per core, as memory allows.")
    ] = None,
    register: Annotated[
        bool, Option("--register", help="Register the model on raw pixels; with no champion yet it becomes that.")
    ] = False,
) -> None:
    """Train the blog post's model as it stands, on all training images, and compare with its figures.

    The post says that its pixels were scaled to [0, 1], but its code trains on the raw ones: both are trained
    here. Every training reads the holdout once, and becomes a run in MLflow.

    Examples:

      python -m experiments.reproduce_baseline

      python -m experiments.reproduce_baseline --seeds 3 --register
    """
    source, opened = locate(dataset, data_dir), open_store(store, has_trials=False)

    # Imported here: it brings MLflow, and a refusal must not wait for that.
    from fashion_study.baseline.reproduce import comparison, reproduce_baseline

    console = Console()
    reproduction = reproduce_baseline(source, opened, seeds, workers, register=register)
    console.print(comparison(reproduction))
    console.print(
        "train accuracy: running mean of the last epoch; holdout: images that chose nothing\n"
        f"MLflow run: {reproduction.run_id} in the experiment {reproduction.source.name}"
    )
    if reproduction.version is not None:
        console.print(f"Registered: {reproduction.version}", highlight=False)


if __name__ == "__main__":
    run(main)
