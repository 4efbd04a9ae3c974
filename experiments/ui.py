"""Open the MLflow UI on the store, with a study's trials side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Exit, Option

from experiments._entry import StoreFolder, Whole, run
from fashion_study.signals import exit_code_of
from fashion_study.store.store import find_store

if TYPE_CHECKING:
    from fashion_study.mlflow_ui.server import Pages


def main(
    store: StoreFolder = Path("mlruns"),
    port: Annotated[
        Whole, Option(min=1024, max=65535, help="Another free one is taken where this is not free.")
    ] = 5000,
    study: Annotated[str | None, Option(help="Name of the study; default the latest.", show_default=False)] = None,
) -> None:
    """Start the MLflow server on the store, for this machine only, until Ctrl-C.

    Prints the page that compares the best trials of a study. Jobs, pickles, telemetry and the assistant are off; other
    hosts' names and writes from other origins are refused. Where MLFLOW_TRACKING_URI names a server, its pages are
    printed and nothing is started.

    Examples:

      python -m experiments.ui

      python -m experiments.ui --study fashion-mnist-baseline --port 5050
    """
    found = find_store(store, writes="MLflow's server works on its database")

    # Imported here: it brings MLflow, and a refusal must not wait for it.
    from fashion_study.mlflow_ui.server import choose_port, find_pages, serve

    pages = find_pages(found, study)
    if found.tracking_uri.startswith("http"):
        _show(found.tracking_uri.rstrip("/"), pages)
        return
    if (free := choose_port(port)) != port:
        print(f"Port {port} is taken; the UI takes {free} instead.", flush=True)
    try:
        with serve(found, free) as server:
            _show(server.address, pages)
            print("Ctrl-C ends it.", flush=True)
            server.wait()
    except KeyboardInterrupt as stop:
        print("The MLflow UI has ended.")
        raise Exit(exit_code_of(stop)) from None


def _show(address: str, pages: "Pages") -> None:
    if pages.comparison is None:
        print(f"The study {pages.study} has no two complete trials to compare yet.")
    else:
        print(f"Best trials of {pages.study}, side by side:\n  {address}{pages.comparison}")
    print(f"All runs:\n  {address}{pages.experiment}", flush=True)


if __name__ == "__main__":
    run(main)
