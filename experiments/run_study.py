"""Run a hyperparameter study, or continue one to its total."""

import json
from pathlib import Path
from typing import Annotated, Any

from typer import Exit, Option

from experiments._entry import DataFolder, DatasetName, StoreFolder, Whole, run
from fashion_study.config import (
    AnySampler,
    EngineName,
    ExecutorName,
    PrecisionChoice,
    PrunerName,
    StudyConfig,
    parse_duration,
    parse_size,
)
from fashion_study.errors import BadInputError, ExitCode
from fashion_study.trial import MAX_PARAMETERS


def _trial_timeout(text: str) -> float:
    return parse_duration(text, "--trial-timeout")


def _budget(text: str) -> float:
    return parse_duration(text, "--budget")


def _checkpoint_disk(text: str) -> int:
    return parse_size(text, "--checkpoint-disk")


def _point(text: str) -> dict[str, int | float | str]:
    try:
        point = json.loads(text)
    except (ValueError, RecursionError) as error:
        point = error
    if not isinstance(point, dict):
        raise BadInputError(f"--try {text!r} is no JSON object. Expected for instance '{{\"learning_rate\": 0.002}}'.")
    return point


def main(
    space: Annotated[str, Option(help="A name from search_spaces/, or a YAML file.")] = "baseline",
    dataset: DatasetName = "auto",
    data_dir: DataFolder = None,
    trials: Annotated[
        Whole | None,
        Option(
            help="Total number of trials, those of earlier runs included; default 30, with --budget as many as fit."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        Option(
            parser=_budget,
            metavar="DURATION",
            help="Plan the study for this long, and end in time, finalists included: 60m. Of --budget, --trials, "
            "--timeout and --epoch-budget, the first that is reached ends the study.",
        ),
    ] = None,
    plan_only: Annotated[
        bool, Option("--plan", help="Print what --budget would be spent on, after a short measurement; train nothing.")
    ] = False,
    epoch_budget: Annotated[
        Whole | None, Option(help="Start no trial when all of them have taken so many epochs.")
    ] = None,
    timeout: Annotated[
        float | None,
        Option(parser=parse_duration, metavar="DURATION", help="Start no trial after this long: 90s, 30m, 1h30m."),
    ] = None,
    trial_timeout: Annotated[
        float | None,
        Option(parser=_trial_timeout, metavar="DURATION", help="Fail a trial that takes longer: 90s, 10m."),
    ] = None,
    workers: Annotated[
        Whole | None,
        Option(
            help="Processes that train; default one per GPU, else per core, as memory allows; on Ray, as many as fit."
        ),
    ] = None,
    worker_memory: Annotated[
        int | None,
        Option(parser=parse_size, metavar="SIZE", help="Fail a trial whose worker takes more: 4G, 900M."),
    ] = None,
    max_parameters: Annotated[
        Whole, Option(help="Train no model with more weights, but for the baseline; such a trial counts as failed.")
    ] = MAX_PARAMETERS,
    executor: Annotated[
        ExecutorName, Option(help="Where workers are: on this machine, or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, Option(metavar="HOST:PORT", help="Of the Ray cluster; default RAY_ADDRESS, else one started here.")
    ] = None,
    worker_cpus: Annotated[float | None, Option(help="CPUs of a Ray node for each worker; default 1.")] = None,
    worker_gpus: Annotated[
        float | None, Option(help="GPUs, or a share of one; default 1 where the Ray cluster has any.")
    ] = None,
    engine: Annotated[EngineName, Option(help="Whose samplers propose hyperparameters.")] = "optuna",
    sampler: Annotated[
        AnySampler | None,
        Option(
            help="tpe (default), random, qmc or grid; of keras-tuner hyperband (default), bayesian, random or grid."
        ),
    ] = None,
    pruner: Annotated[
        PrunerName | None,
        Option(
            help="What stops trials: asha (default) pauses them, and the best go on; with the others they end. "
            "keras-tuner has none."
        ),
    ] = None,
    close: Annotated[bool, Option("--close", help="At the end, prune the paused trials for good.")] = False,
    checkpoint_disk: Annotated[
        int | None,
        Option(
            parser=_checkpoint_disk,
            metavar="SIZE",
            help="Prune the lowest ranked paused trials where their checkpoints take more: 500M, 10G; default 2G.",
        ),
    ] = None,
    seed: Annotated[Whole, Option(help="Every other seed derives from this one.")] = 0,
    study: Annotated[str | None, Option(help="Name of the study; default DATASET-SPACE.")] = None,
    store: StoreFolder = Path("mlruns"),
    study_db: Annotated[
        str | None,
        Option(
            help="Keep the trials in a PostgreSQL database, postgresql://ROLE@HOST/NAME; default OPTUNA_STORAGE, else "
            "a file in --store. No password here: PGPASSWORD, ~/.pgpass or OPTUNA_STORAGE has it.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[PrecisionChoice, Option(help="auto: the faster one on this machine.")] = "auto",
    limit_train: Annotated[Whole | None, Option(help="Train on this many images only.")] = None,
    finalists: Annotated[
        Whole | None,
        Option(
            help="Train the best K trials again; 0: none. Default 3, or fewer that cost no more than the trials did."
        ),
    ] = None,
    repeats: Annotated[Whole | None, Option(help="How often at most, with other seeds; default 3.")] = None,
    keep_models: Annotated[
        Whole | None,
        Option(help="Keep the model files of the best K trials, baseline, finalists and registered ones; default all."),
    ] = None,
    try_points: Annotated[
        list[Any] | None,
        Option(
            "--try",
            parser=_point,
            metavar="JSON",
            help="A point of your own (JSON), tried after the space's own points; the baseline completes it.",
        ),
    ] = None,
) -> None:
    """Run a hyperparameter study around the baseline CNN, or continue one to its total.

    Every trial becomes a run in MLflow. Ctrl-C once ends cleanly; the same command goes on from there.

    Examples:

      python -m experiments.run_study

      python -m experiments.run_study --space smoke --dataset digits --trials 4

      python -m experiments.run_study --trials 40 --try '{"learning_rate": 0.002}'

      python -m experiments.run_study --space wide --budget 60m
    """
    options = dict(locals())
    del options["plan_only"]
    config = StudyConfig(**options)  # Every other option is the field of its name.
    if plan_only and (config.budget is None or executor != "local"):
        raise BadInputError(
            "--plan measures on this machine what a budget would be spent on. Expected --budget beside it, for "
            "instance 60m, and workers on this machine."
        )

    # Imported here, the slow ones last: no help waits for NumPy (joblib brings it), no refusal for MLflow or Optuna.
    from fashion_study.study.plan import plan_study

    plan = plan_study(config)
    if plan_only and config.budget is not None:
        from fashion_study.study.session import foresee

        for line in foresee(plan, config.budget).lines:
            print(line)
        return
    from rich.console import Console

    from fashion_study.study.progress import watch
    from fashion_study.study.run import run_study
    from fashion_study.study.summary import summarise

    console = Console()
    with watch(console) as observer:
        result = run_study(plan, observer)
    summarise(result, console)
    if result.stopped_by is not None:
        raise Exit(128 + result.stopped_by)
    if result.best is None:
        raise Exit(ExitCode.ANSWER_IS_NO)


if __name__ == "__main__":
    run(main)
