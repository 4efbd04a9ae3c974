"""The blog post's figures, and a reproduction's beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from rich import box
from rich.table import Table

from fashion_study.data.catalog import PREFERRED, describe
from fashion_study.data.dataset import PublishedFigures
from fashion_study.trial import DataSource

Scale = Literal["raw", "unit"]
SCALES: dict[Scale, str] = {"raw": "raw pixels, 0 to 255", "unit": "scaled to 0 to 1"}


@dataclass(frozen=True)
class Figures(PublishedFigures):
    """The figures of a training; `run_id` is the MLflow run that they come from."""

    run_id: str = ""


@dataclass(frozen=True)
class Reproduction:
    """The figures of every seed by input scale, and the MLflow run above the runs of the trainings.

    `version` says in words what was registered.
    """

    source: DataSource
    run_id: str
    figures: dict[Scale, tuple[Figures, ...]]
    version: str | None = None


def comparison(reproduction: Reproduction) -> Table:
    """Lay the figures out beside the post's; on other data than the post's there is no such column."""
    source, kind = reproduction.source, describe(reproduction.source.name)
    columns: dict[str, Sequence[PublishedFigures]] = {
        SCALES[scale]: many for scale, many in reproduction.figures.items()
    }
    if kind.published is not None:
        columns = {"the post": (kind.published,)} | columns
    seeds = len(reproduction.figures["raw"])
    title = f"The baseline on {source.name}" + (f" (a FALLBACK: not {PREFERRED.title})" if source.is_fallback else "")
    counted = "" if seeds == 1 else f", {seeds} seeds: mean ± standard deviation"
    table = Table(
        title=title + counted, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("accuracy", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for label, attribute in (("train", "train_accuracy"), ("holdout", "holdout_accuracy")):
        table.add_row(label, *(_percent([getattr(one, attribute) for one in many]) for many in columns.values()))
    table.add_section()
    table.add_row("by class", *[f"{'precision':>9} {'recall':>9}"] * len(columns), style="dim")
    for name in kind.class_names:
        pairs = (zip(*(one.by_class[name] for one in many), strict=True) for many in columns.values())
        table.add_row(name, *(" ".join(f"{_share(values):>9}" for values in pair) for pair in pairs))
    return table


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread} %"


def _share(values: Sequence[float]) -> str:
    spread = f"±{stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}"
