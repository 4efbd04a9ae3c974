"""Let a challenger become champion, where the evidence says so; or go one step back."""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Exit, Option

from experiments._entry import DataFolder, StoreFolder, Whole, run
from fashion_study.errors import ExitCode
from fashion_study.promotion.decision import PromotionConfig
from fashion_study.store.store import find_store


def main(
    study: Annotated[str | None, Option(help="The latest version of this study.")] = None,
    run_id: Annotated[str | None, Option("--run", metavar="ID", help="The version of this MLflow run.")] = None,
    version: Annotated[Whole | None, Option(min=1, help="The version of this number.")] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Show the evidence, move nothing. What it reads of the holdout counts.")
    ] = False,
    force: Annotated[
        str | None, Option(metavar="REASON", help="Skip the statistics, for a reason that is recorded.")
    ] = None,
    rollback: Annotated[bool, Option("--rollback", help="Make the previous champion the champion again.")] = False,
    store: StoreFolder = Path("mlruns"),
    data_dir: DataFolder = None,
) -> None:
    """Compare the challenger with the champion on the holdout, and let it take its place if every gate passes.

    Without --study, --run or --version it is the version with the alias challenger. Without a champion it has to
    beat the baseline trial of its study. The decision is recorded in MLflow; a refusal ends with exit code 1.

    Examples:

      python -m experiments.promote --dry-run

      python -m experiments.promote

      python -m experiments.promote --version 1 --force "first look"

      python -m experiments.promote --rollback
    """
    config = PromotionConfig(
        study=study, run=run_id, version=version, dry_run=dry_run, force=force, rollback=rollback, data_dir=data_dir
    )
    found = find_store(store, writes="a dry run, too, counts there what it reads of the holdout")

    # Imported here: they bring MLflow, and a refusal must not wait for that.
    from fashion_study.promotion.promote import promote
    from fashion_study.promotion.view import show_decision

    decision = promote(config, found)
    show_decision(decision, Console())
    if decision.exit_code is not ExitCode.DONE:
        raise Exit(decision.exit_code)


if __name__ == "__main__":
    run(main)
