"""Write the report of a study: one page of HTML that opens without a server."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from experiments._entry import DataFolder, StoreFolder, run
from fashion_study.report.publish import publish_report


def main(
    study: Annotated[str, Argument(help="Name of the study, such as fashion-mnist-baseline.")],
    store: StoreFolder = Path("mlruns"),
    output: Annotated[Path | None, Option(help="File to write; default STUDY.html in the working directory.")] = None,
    data_dir: DataFolder = None,
) -> None:
    """Write the report of a study: one page of HTML that opens without a server.

    It lies as report.html on the study's run as well, unless the study is still running or the store is read-only.
    Nothing is downloaded.

    Examples:

      python -m experiments.report fashion-mnist-baseline

      python -m experiments.report digits-smoke --output /tmp/report.html
    """
    report = publish_report(study, store, output, data_dir)
    print(report.path)
    print(report.contents + ("; also on the study's run as report.html" if report.is_logged else ""))


if __name__ == "__main__":
    run(main)
