"""What every entry point does around its one function: turn errors into messages and exit codes."""

import sys
import traceback
from collections.abc import Callable

import typer

from fashion_study.errors import ExitCode, StudyError


def run(main: Callable[..., None]) -> None:
    """Run an entry point's `main` as a command.

    A user's mistake ends in one message and its exit code; a bug of ours in its traceback and 70.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.command()(main)
    try:
        app()
    except StudyError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("Stopped at once.", file=sys.stderr)
        sys.exit(ExitCode.INTERRUPTED)
    except Exception:
        traceback.print_exc()
        print("This is a bug of fashion-study; please report it with the lines above.", file=sys.stderr)
        sys.exit(ExitCode.BUG)
