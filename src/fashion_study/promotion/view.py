"""A decision as a table on a terminal, and as a page in a browser."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fashion_study.errors import ExitCode
from fashion_study.promotion.decision import Contender, Decision
from fashion_study.text import visible

DRY_RUN = "A dry run: no alias was moved and no decision recorded. What it read of the holdout counts all the same."


def show_decision(decision: Decision, console: Console) -> None:
    """Print the evidence as a table, and the decision in one sentence."""
    if decision.gates:
        console.print(_table(decision))
    for line in _remarks(decision):
        console.print(visible(line), markup=False, highlight=False, soft_wrap=True)
    style = "bold green" if decision.exit_code is ExitCode.DONE else "bold red"
    console.print(Text(visible(decision.sentence), style=style), soft_wrap=True)
    if decision.dry_run:
        console.print(DRY_RUN, markup=False, highlight=False, soft_wrap=True)


def decision_page(decision: Decision) -> str:
    """Return a decision as one HTML page without scripts, fonts or links to other files."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": lambda share: f"{100 * share:+.2f}", "short": _short}
    template = environment.get_template("decision.html.j2")
    return template.render(decision=decision, is_good=decision.exit_code is ExitCode.DONE, remarks=_remarks(decision))


def _table(decision: Decision) -> Table:
    contenders = [f"challenger  {_described(decision.challenger)}"]
    if decision.reference is not None:
        contenders.append(f"{decision.reference.role}  {_described(decision.reference)}")
    table = Table(
        title=Text("\n".join(visible(line) for line in contenders), style="not italic"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("gate", no_wrap=True)
    table.add_column("answer", no_wrap=True)
    table.add_column("what it found", overflow="fold")
    for gate in decision.gates:
        answer = Text("passed", style="green") if gate.passed else Text("REFUSED", style="bold red")
        table.add_row(gate.name, answer, Text(visible(gate.sentence)))
    for name in decision.skipped:
        table.add_row(name, Text("skipped", style="yellow"), Text("by force"))
    return table


def _remarks(decision: Decision) -> list[str]:
    if (holdout := decision.holdout) is None:
        return []
    study = decision.challenger.study
    whose = f"for the challengers of study {study}" if study else "for this model and those reproduced with it"
    times = "once" if holdout.readings == 1 else f"{holdout.readings} times"
    now = "this time included" if holdout.read_now else "not this time: the predictions were kept"
    return [f"Holdout: {holdout.images:,} images, read {times} {whose} ({now})."]


def _described(contender: Contender) -> str:
    trial = "" if contender.trial is None or contender.version is None else f"trial {contender.trial:03d}, "
    study = f"study {contender.study}, " if contender.study and contender.version is not None else ""
    return f"{contender.title} ({study}{trial}run {contender.run_id[:8]})"


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value == round(value) else f"{value:.3g}"
