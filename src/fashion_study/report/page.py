"""The page of a report: one HTML document that loads nothing from anywhere."""

import base64
import math
import shlex
from collections import Counter
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fashion_study.config import StudyConfig
from fashion_study.data.catalog import PREFERRED
from fashion_study.report import charts
from fashion_study.report.charts import MINUS
from fashion_study.report.facts import (
    ConfusedPair,
    ModelFacts,
    StudyFacts,
    edges,
    gain,
    savings,
    smallest_nearly_best,
)
from fashion_study.space.space import Categorical, Parameter
from fashion_study.statistics import wilson_interval
from fashion_study.study.figures import (
    FEWEST_FOR_IMPORTANCES,
    learning_curves,
    optimization_history,
    parameter_importances,
    trial_lengths,
)
from fashion_study.study.leaderboard import ORDER
from fashion_study.study.progress import duration
from fashion_study.trial import FailReason, ParamValue

SHOWN_TRIALS = 50
SHOWN_PAIRS = 6
MORE_TRIALS = 20
TIMES, THIN_SPACE = "\N{MULTIPLICATION SIGN}", "\N{NARROW NO-BREAK SPACE}"
# What a model costs: its metric, its name on the page and its form.
COSTS = (
    ("parameter_count", "parameters", "{:,.0f}"),
    ("train_seconds", "training time", "{:,.0f} s"),
    ("ms_per_image", "time per image", "{:.3f} ms"),
)


def render(facts: StudyFacts, store: Path = Path("mlruns")) -> str:
    """Return the page; `store` is the folder as a user would name it in a command.

    Every text of the store is escaped; a Content-Security-Policy in the page also forbids scripts and requests.
    """
    best, baseline, best_record, finals = facts.best, facts.baseline, facts.best_record, facts.finals
    both = (best, baseline) if best and baseline and best.run_id != baseline.run_id else None
    template = _environment().get_template("page.html.j2")
    return template.render(
        facts=facts,
        best=best,
        baseline=baseline,
        best_record=best_record,
        gain=gain(*both) if both else None,
        winner=next((f for f in finals.finalists if f.trial == finals.winner), None) if finals else None,
        edges=edges(facts.space, best_record.params) if best_record else (),
        savings=savings(facts),
        smallest=smallest_nearly_best(facts),
        budget=_budget(facts),
        parameters=[(name, _range(spec), spec.why) for name, spec in facts.space.parameters.items()],
        comparison=_comparison(*both) if both else (),
        shown=facts.records[:SHOWN_TRIALS],
        confusion=charts.confusion_table(best) if best else None,
        change=charts.change_table(best, facts.reference) if best and facts.reference else None,
        confused=_confused(facts),
        is_grey=all(image.shape[-1] == 1 for image in facts.pixels.values()),
        preferred=PREFERRED.title,
        figures=_figures(facts),
        commands=_commands(facts, store),
        fewest_for_importances=FEWEST_FOR_IMPORTANCES,
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "points": _points,
        "value": _value,
        "duration": duration,
        "moment": _moment,
        "count": _count,
        "interval": _interval,
    }
    return environment


def _percent(share: float | None, digits: int = 2) -> str:
    return "" if share is None else f"{100 * share:.{digits}f}{THIN_SPACE}%"


def _points(difference: float, digits: int = 2) -> str:
    return f"{100 * difference:+.{digits}f}".replace("-", MINUS)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _value(value: ParamValue | None) -> str:
    if isinstance(value, float):
        return f"{value:.3g}".replace("e-0", "e-")
    return "" if value is None else str(value)


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _budget(facts: StudyFacts) -> dict[str, object]:
    begun = [r for r in facts.records if r.curve or (r.state.is_counted and r.reason is not FailReason.INFEASIBLE)]
    states = Counter(record.state for record in facts.records)
    return {
        "states": [(state.value, states[state]) for state in ORDER if state in states],
        "trained": sum(len(record.curve) for record in begun),
        "asked": sum(facts.epochs_asked(record) - record.inherited_epochs for record in begun),
        "seconds": sum(record.seconds or 0 for record in begun),
        "repeats": sum(len(f.objectives) for f in facts.finals.finalists) if facts.finals else 0,
        "again": sum(max(record.attempt - 1, 0) for record in facts.records),
        "wall": None if facts.ended is None else (facts.ended - facts.began).total_seconds(),
    }


def _range(spec: Parameter) -> str:
    if isinstance(spec, Categorical):
        return ", ".join(_value(choice) for choice in spec.choices)
    scale = ", logarithmic" if spec.log else f", in steps of {_value(spec.step)}" if spec.step not in (None, 1) else ""
    return f"{_value(spec.low)} to {_value(spec.high)}{scale}"


def _comparison(best: ModelFacts, baseline: ModelFacts) -> list[tuple[str, ...]]:
    """Return figures of the two models: the name of each, the baseline's, the best model's, and the difference."""
    shared = best.metrics.keys() & baseline.metrics.keys()
    shares = {"accuracy": (baseline.accuracy, best.accuracy)}
    if "macro_f1" in shared:
        shares["macro F1"] = baseline.metrics["macro_f1"], best.metrics["macro_f1"]
    shares |= {f"recall {name}": (baseline.recall[name], best.recall[name]) for name in best.classes}
    rows: list[tuple[str, ...]] = [
        (name, *map(_percent, pair), _points(pair[1] - pair[0])) for name, pair in shares.items()
    ]
    for metric, name, form in COSTS:
        if metric in shared:
            before, after = baseline.metrics[metric], best.metrics[metric]
            times = f"{TIMES} {after / before:.2f}" if before else ""
            rows.append((name, form.format(before), form.format(after), times))
    return rows


def _interval(model: ModelFacts) -> str:
    low, high = wilson_interval(model.right, model.images)
    return f"{100 * low:.1f} to {_percent(high, 1)}"


def _confused(facts: StudyFacts) -> list[tuple[ConfusedPair, str | None, int, int, int]]:
    """Return the most confused pairs, each with an inline picture of its examples, their number and its size."""
    found = []
    for pair in facts.best.pairs[:SHOWN_PAIRS] if facts.best else ():
        images = [facts.pixels[index] for index in pair.examples if index in facts.pixels]
        height, width = images[0].shape[:2] if images else (0, 0)
        picture = "data:image/png;base64," + base64.b64encode(charts.strip(images)).decode() if images else None
        found.append((pair, picture, len(images), len(images) * (width + charts.GAP) - charts.GAP, height))
    return found


def _figures(facts: StudyFacts) -> dict[str, str]:
    """Draw the figures that there is enough for; Matplotlib escapes the texts in its drawings itself."""
    best = None if facts.best is None else facts.best.trial
    drawn = {}
    if any(record.curve for record in facts.records):
        drawn["history"] = optimization_history(facts.records, best)
        drawn["curves"] = learning_curves(facts.records, best)
    if facts.best and facts.baseline:
        drawn["recall"] = charts.recall_by_class(facts.best, facts.baseline)
    if len({size.parameters for size in facts.sizes.values()}) > 1:
        drawn["parameters"] = charts.front(facts, "parameters", "parameters of the model")
        drawn["milliseconds"] = charts.front(facts, "ms_per_image", "milliseconds for an image")
    if facts.finals:
        drawn["finalists"] = charts.finalists(facts.finals, facts)
    if facts.importances:
        drawn["importances"] = parameter_importances(facts.importances)
    if savings(facts).stopped:
        drawn["lengths"] = trial_lengths(facts.records)
    return {name: charts.svg(figure) for name, figure in drawn.items()}


def _commands(facts: StudyFacts, store: Path) -> dict[str, str]:
    """Return the commands to type next; a store other than the default one is named."""
    command = facts.settings["command"]
    default = StudyConfig.model_fields["store"].default
    store_option = "" if store == default else f" --store {shlex.quote(str(store))}"
    total = facts.trials if facts.counted < facts.trials else facts.trials + MORE_TRIALS
    arguments = shlex.split(command)
    trials = arguments.index("--trials") + 1
    # Where a budget decided how many, it is known in the end alone.
    arguments[trials] = str(facts.trials)
    command = shlex.join(arguments)
    if (budget := facts.settings.get("budget", "None")) != "None":
        arguments[trials - 1 : trials + 1] = ["--budget", f"{math.ceil(float(budget))}s"]
    else:
        arguments[trials] = str(total)
    name = shlex.quote(facts.name)
    return {
        "reproduce": command,
        "go_on": shlex.join(arguments) + store_option,
        "promote": f"python -m experiments.promote --study {name} --dry-run{store_option}",
        "report": f"python -m experiments.report {name}{store_option}",
        "ui": f"python -m experiments.ui{store_option}",
    }
