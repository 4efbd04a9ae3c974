"""Predict pictures with the champion, or with any model of the store."""

import json
import sys
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Exit, Option

from experiments._entry import StoreFolder, run
from fashion_study.errors import ExitCode
from fashion_study.prediction.model_uri import ModelUri
from fashion_study.prediction.pictures import find_pictures
from fashion_study.store.store import find_store
from fashion_study.text import printable


def main(
    images: Annotated[
        list[Path] | None, Argument(help="Pictures (JPEG, PNG, WebP, ...), or folders of them.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or models:/m-ID; default the champion.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON for programs instead of a table.")] = False,
    store: StoreFolder = Path("mlruns"),
) -> None:
    """Predict what pictures show: the best three classes of each, with their probability.

    Each picture should show one object on a plain background, light or dark, at any size.
    One that cannot be read is named, the others are predicted, and the exit code is 1.

    With --json one array is printed, with an object for each picture:
    {"picture": PATH, "model": MODEL, "classes": [{"name": NAME, "probability": P}, ...]},
    or {"picture": PATH, "error": REASON}.

    Examples:

      python -m experiments.predict shoe.jpg shirt.png

      python -m experiments.predict photos/ --json

      python -m experiments.predict shoe.jpg --model models:/fashion-mnist-cnn@challenger
    """
    pictures = find_pictures(images or ())
    uri = None if model is None else ModelUri.parse(model)

    opened = find_store(store)

    # Imported here: it brings MLflow, and a refusal must not wait for it.
    from fashion_study.prediction import predict as prediction

    found = prediction.predict(pictures, opened, uri)
    for error in found.errors:
        print(f"Error: {printable(error)}", file=sys.stderr)
    if as_json:
        print(json.dumps(prediction.as_json(found), indent=2))
    elif found.model is not None:
        console = Console()
        console.print(prediction.table(found, console.width))
    if found.errors:
        raise Exit(ExitCode.ANSWER_IS_NO)


if __name__ == "__main__":
    run(main)
