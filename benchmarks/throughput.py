"""A study against what a user would write instead: the same trials, images and evidence, by wall time.

`python -m benchmarks.throughput` trains eight fixed points of the baseline space on Fashion-MNIST, without pruning, as
a study and with each of the peers: at the peer's own defaults, then with this project's precision, workers and threads,
so that it shows where a ratio comes from. All take turns within a round; ratios are within a round. What each has left
in MLflow is read back, and what is missing or says something else stands below the table.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import typer
import yaml
from rich.table import Table

from benchmarks.peers.task import Task
from benchmarks.processes import use_own_stores
from benchmarks.results import FOLDER, Line, publish, table_of, write
from experiments._entry import run
from fashion_study.executors.local import default_workers, threads_per_worker

OURS = "this project"
# What is started for a peer at its own defaults, and what with as many workers as this project has.
PEERS = {
    "Optuna + MLflow autologging": ("optuna_script", "optuna_workers"),
    "KerasTuner + MLflow callback": ("keras_tuner_script", "keras_tuner_workers"),
    "Ray Tune + MLflow callback": ("ray_tune_script", "ray_tune_script"),
}
COLUMNS = ("defaults", "matched")
FAILED, NOT_MEASURED = "failed", "not measured"
NAMES = ("filters_1", "filters_2", "filters_3", "learning_rate", "batch_size", "epochs")
# The blog's point first, as in every study; the others are spread over the space.
TRIALS = tuple(
    dict(zip(NAMES, values, strict=True))
    for values in (
        (32, 64, 64, 1e-4, 512, 10),
        (48, 96, 96, 1e-3, 256, 6),
        (16, 32, 32, 3e-3, 1024, 8),
        (24, 48, 64, 5e-4, 128, 7),
        (40, 64, 80, 3e-4, 64, 5),
        (32, 80, 48, 2e-3, 512, 9),
        (16, 96, 64, 1e-3, 256, 8),
        (48, 40, 72, 7e-4, 128, 5),
    )
)
# The short form: the same trials, with a part of their epochs, on a fifth of the images.
SHORT_PART, SHORT_IMAGES = 3, 10_000


@dataclass(frozen=True)
class Measurement:
    """The time that a contender took and what it has logged. `column` is one of COLUMNS, empty for ours.

    `failure` says why its time does not count: it ended with an error, or another number of trials ran.
    """

    contender: str
    column: str
    seconds: float
    complete: int = 0
    complaints: tuple[str, ...] = ()
    accuracy: float = 0.0
    failure: str = ""


def main(
    short: Annotated[bool, typer.Option("--short", help="A third of the epochs, on 10,000 images.")] = False,
    precision: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the study.")] = "auto",
    data_dir: Annotated[
        Path | None, typer.Option(envvar="FASHION_MNIST_DIR", help="Folder with the four Fashion-MNIST files.")
    ] = None,
    limit_train: Annotated[int | None, typer.Option(help="Training images; all by default.")] = None,
    peers: Annotated[list[str] | None, typer.Option("--peer", help="A word of a peer's name; all by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 1,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "throughput.json",
) -> None:
    """Measure every contender in turn and print the ratios; one that fails does not keep the others from running."""
    use_own_stores()
    trials = [dict(trial) for trial in TRIALS]
    if short:
        trials = [trial | {"epochs": int(trial["epochs"]) // SHORT_PART} for trial in trials]
        limit_train = limit_train or SHORT_IMAGES
    chosen = [name for name in PEERS if _is_chosen(name, peers)]
    measured: list[list[Measurement]] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), trials, data_dir, limit_train, precision)
        for _ in range(rounds):
            measured.append([])
            for one in bench.round(chosen):
                measured[-1].append(one)
                # Each time anew: an interruption keeps what was measured.
                rows = [_row(name, measured) for name in chosen]
                lines = [_line(row, bench.precision, short=short) for row in rows]
                figures = _figures(bench, rows, measured)
                write("throughput", lines, figures, len(measured), output)
    publish("throughput", [_table(rows, measured, bench), *_complaints(measured)], lines, figures, rounds, output)
    if failed := {f"{one.contender} {one.column}".strip() for once in measured for one in once if one.failure}:
        raise SystemExit(f"These contenders failed: {', '.join(sorted(failed))}.")


class Bench:
    """Contenders in folders of their own, on the same images; what a study chose is known after its first run."""

    def __init__(
        self,
        folder: Path,
        trials: list[dict[str, Any]],
        data_dir: Path | None,
        limit_train: int | None,
        precision: str,
    ) -> None:
        from fashion_study.data.catalog import load_dataset, locate

        self._folder = folder
        self._folders = 0
        self.trials = trials
        self._source = locate("fashion-mnist", data_dir)
        self._limit = limit_train
        self._data = load_dataset(self._source, limit_train)
        self._asked = self.precision = precision
        self.workers = default_workers()
        self.threads = threads_per_worker(self.workers)

    @property
    def images(self) -> int:
        """Count the training images of an epoch."""
        return len(self._data.train.labels)

    def round(self, peers: list[str]) -> Iterator[Measurement]:
        """Measure the study, then each peer in both columns; without the study's time there is nothing to compare."""
        ours = self._study()
        yield ours
        if ours.failure:
            return
        for name in peers:
            for column, module in zip(COLUMNS, PEERS[name], strict=True):
                yield self._peer(name, column, f"benchmarks.peers.{module}")

    def _study(self) -> Measurement:
        folder = self._fresh_folder()
        folder.mkdir()
        space = folder / "space.yaml"
        space.write_text(yaml.safe_dump(self._space()))
        uri = f"sqlite:///{folder / 'store' / 'mlflow.db'}"
        measured = self._measured(OURS, "", [*self._command(space), "--store", str(folder / "store")], uri, folder)
        if not measured.failure:
            self.precision = _precision(uri)
        shutil.rmtree(folder)
        return measured

    def _command(self, space: Path) -> list[str]:
        others = self.trials[1:]
        arguments = ["-m", "experiments.run_study", "--space", str(space), "--dataset", "fashion-mnist"]
        arguments += ["--data-dir", str(self._source.directory), "--trials", str(len(self.trials))]
        arguments += ["--pruner", "none", "--finalists", "0", "--precision", self._asked]
        if self._limit is not None:
            arguments += ["--limit-train", str(self._limit)]
        return [*arguments, *(word for point in others for word in ("--try", json.dumps(point)))]

    def _space(self) -> dict[str, Any]:
        """Return the baseline space, its epochs widened to those of a short run."""
        space: dict[str, Any] = yaml.safe_load(Path("search_spaces/baseline.yaml").read_text(encoding="utf-8"))
        space["baseline"] |= self.trials[0]
        space["parameters"]["epochs"] |= {"low": 1, "grid": [10]}
        return space

    def _peer(self, name: str, column: str, module: str) -> Measurement:
        folder = self._fresh_folder()
        task = Task(folder, tuple(self.trials), self._data.class_names)
        if column == "matched":
            task = replace(task, precision=self.precision, workers=self.workers, threads=self.threads)
        train, validation = self._data.train, self._data.validation
        task.write(train.images, train.labels, validation.images, validation.labels)
        measured = self._measured(name, column, ["-m", module, str(folder)], task.tracking_uri, folder)
        shutil.rmtree(folder)
        return measured

    def _fresh_folder(self) -> Path:
        # Never the same name twice: MLflow keeps the connection to a database, even to one that was deleted.
        self._folders += 1
        return self._folder / str(self._folders)

    def _measured(self, name: str, column: str, arguments: list[str], uri: str, folder: Path) -> Measurement:
        """Run a contender to its end, and look at what it has left."""
        from benchmarks.evidence import check_store

        log = folder / "output.txt"
        started = time.monotonic()
        with log.open("wb") as output:
            code = subprocess.run([sys.executable, *arguments], stdout=output, stderr=output, check=False).returncode
        seconds = time.monotonic() - started
        if code:
            print(f"{arguments[1]} ended with {code}:\n{log.read_text(errors='replace')[-4000:]}", file=sys.stderr)
            return Measurement(name, column, seconds, failure=f"ended with {code}")
        print(f"{arguments[1]}: {seconds:.0f} s", file=sys.stderr)
        evidence = check_store(uri, self.trials)
        failure = ""
        if evidence.trials != len(self.trials):
            failure = f"{evidence.trials} trials ran, {len(self.trials)} were asked for"
            print(f"{arguments[1]}: {failure}", file=sys.stderr)
        return Measurement(name, column, seconds, evidence.complete, evidence.complaints, evidence.accuracy, failure)


def _is_chosen(name: str, parts: list[str] | None) -> bool:
    return not parts or any(word.lower() in name.lower() for word in parts)


def _precision(tracking_uri: str) -> str:
    """Read from a study's run which precision it has taken."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return str(client.search_runs(experiments, "tags.kind = 'study'")[0].data.params["precision"])


def _figures(bench: Bench, rows: list[dict[str, Any]], measured: list[list[Measurement]]) -> dict[str, Any]:
    return {
        "precision": bench.precision,
        "workers": bench.workers,
        "threads": bench.threads,
        "images": bench.images,
        "trials": bench.trials,
        "rows": rows,
        "measurements": [[asdict(one) for one in once] for once in measured],
    }


def _row(peer: str, measured: list[list[Measurement]]) -> dict[str, Any]:
    """Sum up a peer's columns: medians of what counts in it, nothing but why where nothing does."""
    return {"peer": peer} | {column: _column(peer, column, measured) for column in COLUMNS}


def _column(peer: str, column: str, measured: list[list[Measurement]]) -> dict[str, Any]:
    pairs = [(once[0], one) for once in measured for one in once if (one.contender, one.column) == (peer, column)]
    counted = [(ours, theirs) for ours, theirs in pairs if not theirs.failure]
    found = {"n": len(counted), "failures": [theirs.failure for _, theirs in pairs if theirs.failure]}
    if not counted:
        return found
    ratios = [theirs.seconds / ours.seconds for ours, theirs in counted]
    return found | {
        "seconds": median(theirs.seconds for _, theirs in counted),
        "ratio": median(ratios),
        "ratios": ratios,
        "complete": min(theirs.complete for _, theirs in counted),
        "accuracy": median(theirs.accuracy for _, theirs in counted),
    }


def _table(rows: list[dict[str, Any]], measured: list[list[Measurement]], bench: Bench) -> Table:
    title = (
        f"{len(bench.trials)} trials, {bench.images:,} images, {bench.precision}, {bench.workers} workers, "
        f"{bench.threads} threads"
    )
    table = table_of(title, "s", "ratio", "s, matched", "ratio, matched", "complete", "accuracy")
    if ours := [once[0] for once in measured if not once[0].failure]:
        seconds = median(one.seconds for one in ours)
        table.add_row(OURS, f"{seconds:.0f}", "1.00", "", "", str(ours[0].complete), f"{ours[0].accuracy:.4f}")
    else:
        table.add_row(OURS, FAILED)
    for row in rows:
        own, matched = row["defaults"], row["matched"]
        table.add_row(
            row["peer"],
            _cell(own, "seconds", ".0f"),
            _cell(own, "ratio", ".2f"),
            _cell(matched, "seconds", ".0f"),
            _cell(matched, "ratio", ".2f"),
            f"{_cell(own, 'complete', '')}, {_cell(matched, 'complete', '')}",
            f"{_cell(own, 'accuracy', '.4f')}, {_cell(matched, 'accuracy', '.4f')}",
        )
    return table


def _cell(column: Mapping[str, Any], name: str, form: str) -> str:
    if column["n"]:
        return format(column[name], form)
    return FAILED if column["failures"] else NOT_MEASURED


def _complaints(measured: list[list[Measurement]]) -> list[Table]:
    """List what the last round's runs lack or mislabel, where they do."""
    table = table_of("What is missing or mislabelled in MLflow", "what")
    for one in measured[-1]:
        for complaint in one.complaints:
            table.add_row(f"{one.contender} {one.column}".strip(), complaint)
    return [table] if table.row_count else []


def _line(row: Mapping[str, Any], precision: str, *, short: bool) -> Line:
    own, matched = row["defaults"], row["matched"]
    measured = f"{_times(own)}, {_times(matched)} matched"
    n = min(own["n"], matched["n"])
    if short:  # Starting and logging weigh more than in a study: that says little about the goals.
        return Line(f"throughput of {len(TRIALS)} short trials against {row['peer']}, {precision}", measured, n=n)
    goal = "3x, 1x matched" if precision == "bfloat16" else "1.5x, 1x matched"
    return Line(f"throughput against {row['peer']}, {precision}", measured, goal, n)


def _times(column: Mapping[str, Any]) -> str:
    ratio = _cell(column, "ratio", ".2f")
    return f"{ratio}x" if column["n"] else ratio


if __name__ == "__main__":
    run(main)
