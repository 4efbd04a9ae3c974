"""Samplers and pruners by the epochs that they need, replayed against recorded learning curves.

`python -m benchmarks.search` runs whole studies of the baseline space in virtual time and trains nothing. The target
is an objective within 1.0 and within 0.5 points of the table's best. Compared are random search without pruning (each
trial is trained for the epochs that were drawn for it), the pruners, TPE and Sobol with each, and a baseline that
trains all trials for one epoch and finishes the best ones.
`benchmarks/record_curves.py` records the curves; a table that is not finished yet serves, too.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from joblib import cpu_count
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.curves import TABLE, CurveTable, read_table, space_of
from benchmarks.results import FOLDER, Line, publish, table_of
from benchmarks.virtual_study import CANDIDATES, FEW_TRIALS, Moment, OneEpoch, Outcome, Strategy, replay
from experiments._entry import run
from fashion_study.config import PrunerName, SamplerName, StudyConfig
from fashion_study.engines.asha import rungs_of
from fashion_study.space.space import SearchSpace

MARGINS = (0.010, 0.005)
WORKERS = (1, 2, 8, 16)
SHORT_WORKERS = (1, 2, 8)
ONE_EPOCH = tuple(OneEpoch(trials) for trials in (FEW_TRIALS, 50, 100))
# By the number of workers, to 1.0 points: against the published reference, and where the best epoch counts there too.
GOALS = ({1: "6x", 2: "5x", 8: "4x", 16: "3.5x"}, {1: "3x", 2: "2.6x", 8: "1.7x", 16: "1.3x"})
# Of a ratio of medians, by the bootstrap: each draws as many studies as there are, with replacement.
RESAMPLES, CONFIDENCE = 2_000, 0.95

Quartiles = tuple[float, float, float]


@dataclass(frozen=True)
class Reached:
    """The epochs until studies came within a margin of the best: quartiles over seeds, infinite for never.

    `each` holds the epochs of every study, in the order of the seeds.
    """

    each: tuple[float, ...]
    epochs: Quartiles
    seconds: Quartiles
    never: float


@dataclass(frozen=True)
class Summary:
    """A strategy over its seeds; `early_epochs` and `early_gap` are those after FEW_TRIALS."""

    strategy: Strategy
    reached: Mapping[float, Reached]
    early_epochs: Quartiles | None
    early_gap: Quartiles | None
    distance: Quartiles


def main(
    short: Annotated[bool, typer.Option("--short", help="The main strategies, 1, 2 and 8 workers.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Studies of each strategy.")] = 50,
    trials: Annotated[int, typer.Option(min=1, help="The most trials of a study.")] = 100,
    table: Annotated[Path, typer.Option(help="The recorded curves.")] = TABLE,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "search.json",
) -> None:
    """Replay every strategy with every number of workers and print how they compare."""
    recorded, space = _inputs(table)
    best = recorded.best_from(_fewest_epochs(space))
    strategies = list(_strategies(short=short))
    summaries = [
        _summary(strategy, outcomes, best)
        for strategy, outcomes in zip(strategies, _replayed(strategies, seeds, trials, table), strict=True)
    ]
    rows = len(recorded.curves)
    figures = {
        "rows": rows,
        "best": best,
        "trials": min(trials, rows),
        "design": vars(recorded.design),
        "sessions": recorded.sessions,
        "strategies": [_plain(summary) for summary in summaries],
    }
    heading = f"{rows} rows, best {best:.4f}, n = {seeds} seeds, at most {min(trials, rows)} trials"
    lines = [*_lines(summaries, rows), *_foresight(recorded), *_mixture(recorded.sessions)]
    publish("search", _tables(summaries, heading), lines, figures, seeds, output)


@cache
def _inputs(path: Path) -> tuple[CurveTable, SearchSpace]:
    recorded = read_table(path)
    return recorded, space_of(path, recorded.design)


def _fewest_epochs(space: SearchSpace) -> int:
    epochs = space.parameters.get("epochs")
    return int(getattr(epochs, "low", space.max_epochs))


def _strategies(*, short: bool) -> Iterator[Strategy]:
    """Yield what is compared; random search without pruning comes first for each number of workers.

    It is the published reference, in which a trial counts with its last epoch, and then the same with its best one.
    """
    samplers: tuple[SamplerName, ...] = ("random", "tpe") if short else ("random", "tpe", "qmc")
    one_epoch = ONE_EPOCH[:2] if short else ONE_EPOCH
    candidates = () if short else tuple(CANDIDATES)
    own = sorted(get_args(PrunerName), key=lambda name: name != "none")
    for workers in SHORT_WORKERS if short else WORKERS:
        yield Strategy("random", "none", workers, last_epoch=True)
        for sampler in samplers:
            for pruner in (*own, *candidates, *one_epoch):
                yield Strategy(sampler, pruner, workers)
        if not short:
            # A grid has its own few values: what a pruner makes of it shows with one.
            yield Strategy("grid", "none", workers)
            yield Strategy("grid", StudyConfig.model_fields["pruner"].default, workers)


def _replayed(strategies: Sequence[Strategy], seeds: int, trials: int, path: Path) -> Iterator[list[Outcome]]:
    orders = [(strategy, seed, trials, path) for strategy in strategies for seed in range(seeds)]
    with ProcessPoolExecutor(int(cpu_count()), mp_context=get_context("spawn")) as pool:
        outcomes = pool.map(_one, orders, chunksize=5)
        for _ in strategies:
            yield [next(outcomes) for _ in range(seeds)]


def _one(order: tuple[Strategy, int, int, Path]) -> Outcome:
    strategy, seed, trials, path = order
    recorded, space = _inputs(path)
    target = recorded.best_from(_fewest_epochs(space)) - min(MARGINS)
    return replay(strategy, space, recorded, seed, trials, target)


def _summary(strategy: Strategy, outcomes: list[Outcome], best: float) -> Summary:
    ends = [outcome.early for outcome in outcomes if outcome.early is not None]
    distances = [distance for outcome in outcomes for distance in outcome.distances]
    return Summary(
        strategy,
        {margin: _reached([outcome.reached(best - margin) for outcome in outcomes]) for margin in MARGINS},
        _quartiles([moment.epochs for moment in ends]) if ends else None,
        _quartiles([best - moment.best for moment in ends]) if ends else None,
        _quartiles(distances),
    )


def _reached(moments: list[Moment | None]) -> Reached:
    epochs = tuple(math.inf if moment is None else float(moment.epochs) for moment in moments)
    return Reached(
        epochs,
        _quartiles(epochs),
        _quartiles([math.inf if moment is None else moment.seconds for moment in moments]),
        sum(moment is None for moment in moments) / len(moments),
    )


def _quartiles(values: Sequence[float]) -> Quartiles:
    # Of the values themselves: nothing can be interpolated towards an infinite one.
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), method="inverted_cdf").tolist()
    return low, middle, high


def _tables(summaries: list[Summary], heading: str) -> list[Table]:
    by_workers: dict[int, list[Summary]] = {}
    for summary in summaries:
        by_workers.setdefault(summary.strategy.workers, []).append(summary)
    return [
        *(_table(group, f"{_workers(workers)}: {heading}") for workers, group in by_workers.items()),
        _times(by_workers, f"virtual minutes until within 0.5 points: {heading}"),
    ]


def _table(group: list[Summary], title: str) -> Table:
    table = table_of(
        title,
        "epochs to 1.0 points",
        "fewer",
        "never",
        "epochs to 0.5 points",
        "fewer",
        "never",
        f"{FEW_TRIALS} trials: epochs",
        "points below",
        "distance",
    )
    table.columns[0].no_wrap = True
    for summary in group:
        cells = []
        for margin in MARGINS:
            reached, reference = summary.reached[margin], group[0].reached[margin]
            cells += [_spread(reached.epochs), _ratio(reference.epochs, reached.epochs), f"{reached.never:.0%}"]
        gap = summary.early_gap and tuple(100 * value for value in summary.early_gap)
        table.add_row(
            _name(summary.strategy),
            *cells,
            _spread(summary.early_epochs),
            _spread(gap, digits=2),
            f"{summary.distance[1]:.2f}",
        )
    return table


def _times(by_workers: Mapping[int, list[Summary]], title: str) -> Table:
    table = table_of(title, *(_workers(workers) for workers in by_workers))
    for row in zip(*by_workers.values(), strict=True):
        minutes = [tuple(value / 60 for value in summary.reached[min(MARGINS)].seconds) for summary in row]
        table.add_row(_name(row[0].strategy), *(_spread(each) for each in minutes))
    return table


def _lines(summaries: list[Summary], rows: int) -> list[Line]:
    """Hold the study's defaults and, with one worker, the one-epoch baselines against random search without pruning."""
    defaults = tuple(StudyConfig.model_fields[name].default for name in ("sampler", "pruner"))
    lines = [Line("recorded configurations", f"{rows}", "201: 200 and the baseline")]
    for workers in sorted({summary.strategy.workers for summary in summaries}):
        group = [summary for summary in summaries if summary.strategy.workers == workers]
        held = [each for each in group if (each.strategy.sampler, each.strategy.pruner) == defaults]
        if workers == 1:
            held += [each for each in group if isinstance(each.strategy.pruner, OneEpoch)]
        lines += [
            Line(
                f"fewer epochs to {100 * margin:.1f} points, {_workers(workers)}: "
                f"{_name(each.strategy)} against {_name(reference.strategy)}",
                _ratio_and_interval(reference.reached[margin], each.reached[margin]),
                "" if isinstance(each.strategy.pruner, OneEpoch) or margin != MARGINS[0] else goals.get(workers, ""),
            )
            for reference, goals in zip(group, GOALS, strict=False)
            for margin in MARGINS
            for each in held
        ]
    return lines


def _foresight(table: CurveTable) -> Iterator[Line]:
    """Say how well the best value after each rung of the default pruner ranks rows as their best in the end does.

    By their schedule too, where that is searched: a rate that falls in the end makes the first epochs say less.
    """
    whole = [curve for curve in table.curves if len(curve.accuracy) == table.design.epochs]
    schedules = sorted({str(curve.params["schedule"]) for curve in whole if "schedule" in curve.params})
    groups = {"all": whole} | {
        schedule: [curve for curve in whole if curve.params["schedule"] == schedule] for schedule in schedules
    }
    for name, curves in groups.items():
        ends = [max(curve.accuracy) for curve in curves]
        known = {rung: [max(curve.accuracy[:rung]) for curve in curves] for rung in rungs_of(table.design.epochs)}
        found = ", ".join(f"{spearmanr(values, ends).statistic:.2f} after {rung}" for rung, values in known.items())
        yield Line(f"rank correlation with the end, {name} ({len(curves)} rows), by epochs", found)


def _mixture(sessions: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Say so where the curves were not all trained alike: they differ by more than their configurations and seeds."""
    found = {
        what: list(dict.fromkeys(str(session.get(key, "unknown")) for session in sessions))
        for what, key in (("training version", "training_version"), ("precision", "precision"))
    }
    mixed = [f"{what} {', '.join(values)}" for what, values in found.items() if len(values) > 1]
    return [Line("the recordings mix", "; ".join(mixed))] if mixed else []


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


def _name(strategy: Strategy) -> str:
    return f"{strategy.sampler}, {strategy.pruner}" + (", last epoch" if strategy.last_epoch else "")


def _spread(quartiles: Sequence[float] | None, digits: int = 0) -> str:
    if quartiles is None:
        return ""
    low, middle, high = ("never" if math.isinf(value) else f"{value:,.{digits}f}" for value in quartiles)
    if low == "never":
        return low
    return f"{middle} ({low} to {high})"


def _ratio(reference: Quartiles, found: Quartiles) -> str:
    """Divide medians; where the reference's is never reached, nothing can be said of how much it would have been."""
    return "" if math.isinf(reference[1]) or math.isinf(found[1]) else f"{reference[1] / found[1]:.1f}x"


def _ratio_and_interval(reference: Reached, found: Reached) -> str:
    """Write how many times fewer epochs, with the interval that a bootstrap gives the ratio of the medians."""
    ratio = _ratio(reference.epochs, found.epochs)
    if not ratio:
        return "no median: never reached"
    draws = np.random.default_rng(0)
    theirs, ours = (
        np.quantile(draws.choice(reached.each, (RESAMPLES, len(reached.each))), 0.5, axis=1, method="inverted_cdf")
        for reached in (reference, found)
    )
    # Where both are never reached nothing is known of their ratio: that counts for neither side.
    known = np.isfinite(theirs) | np.isfinite(ours)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(theirs[known] / ours[known], (tail, 1 - tail), method="inverted_cdf")
    return f"{ratio} ({CONFIDENCE:.0%}: {low:.1f} to {high:.1f})"


def _plain(summary: Summary) -> dict[str, Any]:
    """Write a summary as JSON can hold it: null for what was never reached."""
    reached = {
        f"{margin:.3f}": {
            "each": _finite(each.each),
            "epochs": _finite(each.epochs),
            "seconds": _finite(each.seconds),
            "never": each.never,
        }
        for margin, each in summary.reached.items()
    }
    strategy = summary.strategy
    return {
        "sampler": strategy.sampler,
        "pruner": str(strategy.pruner),
        "workers": strategy.workers,
        "last_epoch": strategy.last_epoch,
        "reached": reached,
        "early_epochs": summary.early_epochs,
        "early_gap": summary.early_gap,
        "distance": summary.distance,
    }


def _finite(values: Sequence[float]) -> list[float | None]:
    return [None if math.isinf(value) else value for value in values]


if __name__ == "__main__":
    run(main)
