"""Every benchmark in turn, and one table of what was measured and what was wanted.

`python -m benchmarks` takes hours on two cores, `--short` less than a quarter of one. The figures in full go to a JSON
file each; those of a short run lie in a folder of their own, where they take the place of no full ones.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.results import FOLDER, Line, lines_table, print_table
from experiments._entry import run

Arguments = tuple[str, ...]
SHORT = FOLDER / "short"


@dataclass(frozen=True)
class Part:
    """A module of this package with its arguments for a full and for a short run; None: it has no short one."""

    module: str
    full: Arguments = ()
    short: Arguments | None = None


PARTS = {
    "throughput": Part("throughput", full=("--rounds", "3"), short=("--short",)),
    "throughput-float32": Part("throughput", full=("--precision", "float32")),
    "training-float32": Part("training", short=("--short",)),
    "training-bfloat16": Part(
        "training", full=("--precision", "bfloat16"), short=("--short", "--precision", "bfloat16")
    ),
    "workers": Part("workers"),
    "accuracy-float32": Part("accuracy"),
    "accuracy-bfloat16": Part("accuracy", full=("--precision", "bfloat16")),
    "best-epoch": Part("best_epoch"),
    "overhead": Part("overhead", short=("--short",)),
    "scale": Part("scale", full=("--full",), short=("--short",)),
    "sustain": Part("sustain", short=("--short",)),
    "busy": Part("busy"),
    "search": Part("search", short=("--short",)),
    "endurance": Part("endurance"),
    "forks": Part("forks"),
    "first-use": Part("first_use"),
}


def main(
    short: Annotated[bool, typer.Option("--short", help="Those that have a shortened form, in it.")] = False,
    only: Annotated[list[str] | None, typer.Option("--only", help="The name of one; all by default.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help=f"Where the JSON files go; {FOLDER}, of short runs {SHORT}.")
    ] = None,
) -> None:
    """Run the benchmarks and print their lines; one that fails does not keep the others from running."""
    folder = folder or (SHORT if short else FOLDER)
    chosen = _chosen(short=short, only=only or [])
    lines, failed = [], []
    try:
        for name, command in chosen.items():
            output = folder / f"{name}.json"
            output.unlink(missing_ok=True)  # What another run has left there is not this one's.
            started = time.monotonic()
            try:
                if subprocess.run([*command, "--output", str(output)], check=False).returncode:
                    failed.append(name)
            finally:  # One that fails, or is interrupted, may keep what it had measured.
                print(f"{name}: {(time.monotonic() - started) / 60:.1f} min", file=sys.stderr)
                if output.exists():
                    lines += [Line(**line) for line in json.loads(output.read_text(encoding="utf-8"))["lines"]]
    finally:
        print_table(lines_table("all benchmarks, short" if short else "all benchmarks", lines))
    print(f"The figures in full: {folder}", file=sys.stderr)
    if failed:
        raise SystemExit(f"These benchmarks failed: {', '.join(failed)}.")


def _chosen(*, short: bool, only: list[str]) -> dict[str, list[str]]:
    """Return the commands of what is asked for, by name, in their order."""
    arguments = {name: part.short if short else part.full for name, part in PARTS.items()}
    known = {name: each for name, each in arguments.items() if each is not None}
    if unknown := [name for name in only if name not in known]:
        form = " in short" if short else ""
        raise typer.BadParameter(
            f"found {', '.join(unknown)}; expected names of what runs{form}: {', '.join(known)}.", param_hint="--only"
        )
    return {
        name: [sys.executable, "-m", f"benchmarks.{PARTS[name].module}", *each]
        for name, each in known.items()
        if not only or name in only
    }


if __name__ == "__main__":
    run(main)
