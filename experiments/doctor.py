"""Compare trial storage, runs, registry and files of a store, and repair what a crash or a user has left."""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Exit, Option

from experiments._entry import StoreFolder, run
from fashion_study.doctor.check import check_store, show_report
from fashion_study.errors import ExitCode


def main(
    fix: Annotated[bool, Option("--fix", help="Repair what can be repaired; no result is deleted.")] = False,
    store: StoreFolder = Path("mlruns"),
) -> None:
    """List what disagrees between the Optuna studies, the MLflow runs, the model registry and the files of a store.

    A study that a process is running is left alone. Exit code 0: nothing is wrong, or everything is repaired;
    1: something is; 3: there is no store, or it cannot be read.

    Examples:

      python -m experiments.doctor

      python -m experiments.doctor --fix --store /data/studies
    """
    report = check_store(store, fix)
    show_report(report, Console())
    if report.remaining:
        raise Exit(ExitCode.ANSWER_IS_NO)


if __name__ == "__main__":
    run(main)
