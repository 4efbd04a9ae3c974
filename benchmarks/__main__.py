"""Run every benchmark in turn and print one table of what was measured and what was wanted.

`python -m benchmarks` takes hours on two cores, `--short` less than a quarter of one. The figures in full go to a JSON
file each, beside the table.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.sheet import Line, lines_table, print_table

# Each a module here, with the words for a short and for a full run.
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "throughput": (("--short",), ()),
    "training": (("--short",), ()),
    "overhead": (("--short",), ()),
    "scale": (("--short",), ("--full",)),
    "sustain": (("--short",), ()),
}
FULL_ONLY: dict[str, tuple[str, ...]] = {"endurance": (), "first_use": ()}


def main(
    short: Annotated[bool, typer.Option("--short", help="Every benchmark in its shortened form.")] = False,
    only: Annotated[list[str] | None, typer.Option("--only", help="The name of one; all by default.")] = None,
    folder: Annotated[Path, typer.Option(help="Where the JSON files go.")] = Path("build/benchmarks"),
) -> None:
    """Run the benchmarks and print their lines; one that fails does not keep the others from running."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {name: words[0 if short else 1] for name, words in PARTS.items()} | ({} if short else FULL_ONLY)
    lines, failed = [], []
    for name, words in chosen.items():
        if only and name not in only:
            continue
        output = folder / f"{name}.json"
        started = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.{name}", *words, "--output", str(output)]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
            continue
        print(f"{name}: {(time.monotonic() - started) / 60:.1f} min", file=sys.stderr)
        lines += [Line(**line) for line in json.loads(output.read_text(encoding="utf-8")).get("lines", ())]
    print_table(lines_table("all benchmarks, short" if short else "all benchmarks", lines))
    if failed:
        raise SystemExit(f"These benchmarks failed: {', '.join(failed)}.")


if __name__ == "__main__":
    typer.run(main)
