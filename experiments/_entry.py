"""What every entry point does around its one function: turn errors into messages and exit codes."""

import functools
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic_core.core_schema import no_info_before_validator_function

from experiments import expect_signals
from experiments._streams import keep_streams
from fashion_study.config import whole
from fashion_study.data.catalog import AUTO, KINDS, PREFERRED
from fashion_study.errors import BadInputError, ExitCode, StudyError
from fashion_study.libraries import fix_command, variable_behind
from fashion_study.signals import exit_code_of
from fashion_study.text import without_passwords


def _store(folder: str | Path) -> Path:
    if folder == "":
        # As a path it would be the working directory: a script's variable that is not set.
        raise BadInputError("--store is ''. Expected a folder; for the working directory say --store=.")
    return Path(folder)


# The options that several commands have.
StoreFolder = Annotated[
    Path, typer.Option(parser=_store, metavar="FOLDER", help="Folder of MLflow's and Optuna's data.")
]
if TYPE_CHECKING:
    DatasetName = str
else:  # The choices are those of the catalog, which no type checker can read.
    DatasetName = Annotated[
        Literal[(AUTO, *KINDS)], typer.Option(help=f"{AUTO}: {PREFERRED.title} where it can be had.")
    ]
DataFolder = Annotated[
    Path | None, typer.Option(envvar="FASHION_MNIST_DIR", help="Folder with the four Fashion-MNIST files.")
]


if TYPE_CHECKING:
    Whole = int
else:

    class Whole(int):
        """A whole number as it is typed: Typer would take 20.0 for one."""

        @classmethod
        def __get_pydantic_core_schema__(cls, _: object, handler: Any) -> Any:
            return no_info_before_validator_function(whole, handler.generate_schema(int))

    Whole.__name__ = "int"  # Help shows it.


def run(main: Callable[..., None]) -> None:
    """Run an entry point's `main` as a command.

    A user's mistake ends in one message and its exit code; a bug of ours in its traceback and 70.
    """

    @functools.wraps(main)
    def command(*args: Any, **options: Any) -> None:
        # Here: typer would end a KeyboardInterrupt that reaches it without a word.
        try:
            expect_signals()
            fix_command()
            main(*args, **options)
        except KeyboardInterrupt as stop:
            print("Stopped at once.", file=sys.stderr)
            sys.exit(exit_code_of(stop))

    # Behind the first paragraph Typer keeps the ends of a docstring's lines, which a narrow terminal would break twice.
    paragraphs = inspect.cleandoc(main.__doc__ or "").split("\n\n")
    keep_streams()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.command(help="\n\n".join(text.replace("\n", " ") for text in paragraphs))(command)
    try:
        app()
    except StudyError as error:
        print(f"Error: {without_passwords(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if (name := variable_behind(error)) is not None:
            told = f"MLflow does not take {name}: {error}. Expected a value that it takes. Set another one, or none."
            print(f"Error: {without_passwords(told)}", file=sys.stderr)
            sys.exit(ExitCode.BAD_INPUT)
        print(without_passwords(traceback.format_exc()), end="", file=sys.stderr)
        print("This is a bug of fashion-study; please report it with the lines above.", file=sys.stderr)
        sys.exit(ExitCode.BUG)
