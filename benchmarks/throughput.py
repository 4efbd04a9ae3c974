"""Compare a study with what a user would write instead: the same trials, images and evidence, by wall time.

`python -m benchmarks.throughput` trains eight fixed points of the baseline space on Fashion-MNIST, without pruning, as
a study and with each of the peers: at the peer's own defaults, then with this project's precision, workers and threads,
so that it shows where a ratio comes from. All take turns within a round; ratios are within a round. What each has left
in MLflow is read back, and what is missing or says something else stands below the table.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml
from rich.table import Table

from benchmarks.peers.task import Task
from benchmarks.sheet import Line, publish, table_of
from fashion_study.executors.local import default_workers, threads_per_worker

if TYPE_CHECKING:
    from benchmarks.evidence import Evidence

OURS = "this project"
PEERS = {
    "Optuna + MLflow autologging": "benchmarks.peers.optuna_script",
    "KerasTuner + MLflow callback": "benchmarks.peers.keras_tuner_script",
    "Ray Tune + MLflow callback": "benchmarks.peers.ray_tune_script",
}
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
SHORT_TRIALS, SHORT_EPOCHS, SHORT_IMAGES = 4, 1, 6_000


@dataclass(frozen=True)
class Measurement:
    """Say how long a contender took and what it has left. `column` is `defaults` or `matched`; ours has one."""

    contender: str
    column: str
    seconds: float
    complete: int
    complaints: tuple[str, ...]
    accuracy: float


def main(
    short: Annotated[bool, typer.Option("--short", help="Four trials of an epoch each, on 6,000 images.")] = False,
    precision: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the study.")] = "auto",
    data_dir: Annotated[
        Path | None, typer.Option(envvar="FASHION_MNIST_DIR", help="Folder with the four Fashion-MNIST files.")
    ] = None,
    limit_train: Annotated[int | None, typer.Option(help="Training images; all by default.")] = None,
    peers: Annotated[list[str] | None, typer.Option("--peer", help="A word of a peer's name; all by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 1,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("benchmarks-throughput.json"),
) -> None:
    """Measure every contender in turn and print the ratios."""
    trials = [dict(trial) for trial in (TRIALS[:SHORT_TRIALS] if short else TRIALS)]
    if short:
        trials = [trial | {"epochs": SHORT_EPOCHS} for trial in trials]
        limit_train = limit_train or SHORT_IMAGES
    chosen = {name: module for name, module in PEERS.items() if _is_chosen(name, peers)}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), trials, data_dir, limit_train, precision)
        measured = [bench.round(chosen) for _ in range(rounds)]
    rows = [_row(name, measured) for name in chosen]
    publish(
        "throughput",
        [_table(rows, measured, bench), *_complaints(measured)],
        [_line(row, bench.precision) for row in rows],
        {
            "precision": bench.precision,
            "workers": bench.workers,
            "threads": bench.threads,
            "images": bench.images,
            "trials": trials,
            "rows": rows,
            "measurements": [[asdict(one) for one in once] for once in measured],
        },
        rounds,
        output,
    )


class Bench:
    """Run contenders in folders of their own, on the same images; what a study chose is known after its first run."""

    def __init__(
        self,
        folder: Path,
        trials: list[dict[str, Any]],
        data_dir: Path | None,
        limit_train: int | None,
        precision: str,
    ) -> None:
        from fashion_study.datasets import load_study_data, locate

        self._folder = folder
        self._folders = 0
        self._trials = trials
        self._source = locate("fashion-mnist", data_dir)
        self._limit = limit_train
        self._data = load_study_data(self._source, limit_train)
        self._asked = self.precision = precision
        self.workers = default_workers()
        self.threads = threads_per_worker(self.workers)

    @property
    def images(self) -> int:
        """Count the training images of an epoch."""
        return len(self._data.train.labels)

    def round(self, peers: Mapping[str, str]) -> list[Measurement]:
        """Measure the study, then each peer in both columns."""
        measured = [self._study()]
        for name, module in peers.items():
            measured.append(self._peer(name, module, "defaults"))
            measured.append(self._peer(name, module, "matched"))
        return measured

    def _study(self) -> Measurement:
        folder = self._fresh_folder()
        folder.mkdir()
        space = folder / "space.yaml"
        space.write_text(yaml.safe_dump(self._space()))
        seconds = self._run([*self._command(space), "--store", str(folder / "store")], folder)
        uri = f"sqlite:///{folder / 'store' / 'mlflow.db'}"
        self.precision = _precision(uri)
        return self._measured(OURS, "", seconds, uri, folder)

    def _command(self, space: Path) -> list[str]:
        others = self._trials[1:]
        words = ["-m", "experiments.run_study", "--space", str(space), "--dataset", "fashion-mnist"]
        words += ["--data-dir", str(self._source.directory), "--trials", str(len(self._trials))]
        words += ["--pruner", "none", "--finalists", "0", "--precision", self._asked]
        if self._limit is not None:
            words += ["--limit-train", str(self._limit)]
        return [*words, *(word for point in others for word in ("--try", json.dumps(point)))]

    def _space(self) -> dict[str, Any]:
        """Return the baseline space, its epochs widened to those of a short run."""
        space: dict[str, Any] = yaml.safe_load(Path("search_spaces/baseline.yaml").read_text(encoding="utf-8"))
        space["baseline"] |= self._trials[0]
        space["parameters"]["epochs"] |= {"low": 1, "grid": [10]}
        return space

    def _peer(self, name: str, module: str, column: str) -> Measurement:
        folder = self._fresh_folder()
        task = Task(folder, tuple(self._trials), self._data.class_names)
        if column == "matched":
            task = replace(task, precision=self.precision, workers=self.workers, threads=self.threads)
        train, validation = self._data.train, self._data.validation
        task.write(train.images, train.labels, validation.images, validation.labels)
        seconds = self._run(["-m", module, str(folder)], folder)
        return self._measured(name, column, seconds, task.tracking_uri, folder)

    def _fresh_folder(self) -> Path:
        # Never the same name twice: MLflow keeps the connection to a database, even to one that was deleted.
        self._folders += 1
        return self._folder / str(self._folders)

    def _run(self, words: list[str], folder: Path) -> float:
        log = folder / "output.txt"
        # A user's own server is not for a benchmark's runs.
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        started = time.monotonic()
        with log.open("wb") as output:
            ended = subprocess.run(
                [sys.executable, *words], stdout=output, stderr=output, env=environment, check=False
            ).returncode
        seconds = time.monotonic() - started
        if ended:
            raise RuntimeError(f"{words[1]} ended with {ended}:\n{log.read_text(errors='replace')[-4000:]}")
        print(f"{words[1]}: {seconds:.0f} s", file=sys.stderr)
        return seconds

    def _measured(self, name: str, column: str, seconds: float, uri: str, folder: Path) -> Measurement:
        from benchmarks.evidence import examine

        evidence: Evidence = examine(uri, self._trials)
        shutil.rmtree(folder)
        return Measurement(name, column, seconds, evidence.complete, evidence.complaints, evidence.accuracy)


def _is_chosen(name: str, words: list[str] | None) -> bool:
    return not words or any(word.lower() in name.lower() for word in words)


def _precision(tracking_uri: str) -> str:
    """Read from a study's run which precision it has taken."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return str(client.search_runs(experiments, "tags.kind = 'study'")[0].data.params["precision"])


def _row(peer: str, measured: list[list[Measurement]]) -> dict[str, Any]:
    """Sum up a peer: medians of its seconds, and of its ratios to the study of the same round."""
    row: dict[str, Any] = {"peer": peer}
    for column in ("defaults", "matched"):
        pairs = [(once[0], one) for once in measured for one in once if (one.contender, one.column) == (peer, column)]
        ratios = [theirs.seconds / ours.seconds for ours, theirs in pairs]
        row[column] = {
            "seconds": median(theirs.seconds for _, theirs in pairs),
            "ratio": median(ratios),
            "ratios": ratios,
            "complete": min(theirs.complete for _, theirs in pairs),
            "accuracy": median(theirs.accuracy for _, theirs in pairs),
        }
    return row


def _table(rows: list[dict[str, Any]], measured: list[list[Measurement]], bench: Bench) -> Table:
    trials = measured[0][0].complete
    title = (
        f"{trials} trials, {bench.images:,} images, {bench.precision}, {bench.workers} workers, {bench.threads} threads"
    )
    table = table_of(title, "s", "ratio", "s, matched", "ratio, matched", "complete", "accuracy")
    ours = [once[0] for once in measured]
    seconds = median(one.seconds for one in ours)
    table.add_row(OURS, f"{seconds:.0f}", "1.00", "", "", str(ours[0].complete), f"{ours[0].accuracy:.4f}")
    for row in rows:
        own, matched = row["defaults"], row["matched"]
        table.add_row(
            row["peer"],
            f"{own['seconds']:.0f}",
            f"{own['ratio']:.2f}",
            f"{matched['seconds']:.0f}",
            f"{matched['ratio']:.2f}",
            f"{own['complete']}, {matched['complete']}",
            f"{own['accuracy']:.4f}, {matched['accuracy']:.4f}",
        )
    return table


def _complaints(measured: list[list[Measurement]]) -> list[Table]:
    """List what the last round's runs lack or mislabel, where they do."""
    table = table_of("What is missing or mislabelled in MLflow", "what")
    for one in measured[-1]:
        for complaint in one.complaints:
            table.add_row(f"{one.contender} {one.column}".strip(), complaint)
    return [table] if table.row_count else []


def _line(row: Mapping[str, Any], precision: str) -> Line:
    goal = "3x, 1x matched" if precision == "bfloat16" else "1.5x, 1x matched"
    measured = f"{row['defaults']['ratio']:.2f}x, {row['matched']['ratio']:.2f}x matched"
    return Line(f"throughput against {row['peer']}", measured, goal)


if __name__ == "__main__":
    typer.run(main)
