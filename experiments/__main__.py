"""List the entry points, a line each: `python -m experiments`."""

import argparse
import ast
from pathlib import Path

from experiments._streams import keep_streams


def main() -> None:
    """Print each entry point's command with the first line of its docstring, importing none of them."""
    modules = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    width = max(len(path.stem) for path in modules)
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        usage="python -m experiments.NAME [--help]",
        description="\n".join(f"python -m experiments.{path.stem:<{width}}  {_summary(path)}" for path in modules),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    keep_streams()
    parser.parse_args()
    print(parser.description)


def _summary(path: Path) -> str:
    # Read, not imported: importing them all would take seconds.
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


if __name__ == "__main__":
    main()
