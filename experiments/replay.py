"""Train one trial of a study again, and say whether its metrics are the same to the bit."""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Exit, Option

from experiments._entry import DataFolder, StoreFolder, run
from fashion_study.errors import ExitCode
from fashion_study.replay.request import ReplayConfig
from fashion_study.store.store import find_store


def main(
    trial: Annotated[str, Argument(help="A trial's number, or the id of a run or how it begins.", show_default=False)],
    study: Annotated[
        str | None, Option(help="Name of the study; default the one worked on last.", show_default=False)
    ] = None,
    store: StoreFolder = Path("mlruns"),
    data_dir: DataFolder = None,
) -> None:
    """Train one trial of a study again, and say whether its metrics are the same to the bit.

    The run of a finalist's repeat can be named as well. Nothing is written into the store. Exit code 0: the same;
    1: it is not, and what is different here; 2: there is no such trial, or it came to no end of its own.

    Examples:

      python -m experiments.replay 3

      python -m experiments.replay 3 --study digits-smoke --store demo

      python -m experiments.replay 9f5fd225
    """
    config = ReplayConfig(trial, study, data_dir)
    found = find_store(store, needs="runs" if config.number is None else "both")

    # Imported here: they bring MLflow and Optuna, and a refusal must not wait for those.
    from fashion_study.replay.comparison import show_replay
    from fashion_study.replay.replay import replay
    from fashion_study.study.progress import watch

    console = Console()
    with watch(console) as observer:
        result = replay(config, found, observer)
    show_replay(result, console)
    if result.first_difference is not None:
        raise Exit(ExitCode.ANSWER_IS_NO)


if __name__ == "__main__":
    run(main)
