"""The task that every peer is given: the same images, the same trials, one folder for what it leaves.

No library is imported before it is needed: what starts several processes of a peer reads the task, too.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Split = tuple[NDArray[np.float32], NDArray[np.int64]]

EXPERIMENT = "peer"


@dataclass(frozen=True)
class Task:
    """The task of a peer. Without `precision`, `workers` and `threads` a peer keeps to its own defaults."""

    folder: Path
    trials: tuple[dict[str, Any], ...]
    class_names: tuple[str, ...]
    precision: str | None = None
    workers: int | None = None
    threads: int | None = None

    @property
    def tracking_uri(self) -> str:
        """Return the address of the MLflow store that the peer writes."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def write(self, *arrays: "NDArray[np.generic]") -> None:
        """Put the task into its folder, with the training images, their labels, and both for validation."""
        import numpy as np

        self.folder.mkdir(parents=True)
        np.savez(self.folder / "images.npz", *arrays)
        (self.folder / "task.json").write_text(json.dumps(asdict(self) | {"folder": None}))

    def images(self) -> tuple["Split", "Split"]:
        """Read the training and the validation images with their labels, raw pixels as float32."""
        import numpy as np

        with np.load(self.folder / "images.npz") as stored:
            x_train, y_train, x_check, y_check = (stored[name] for name in stored.files)
        return (x_train.astype("float32"), y_train), (x_check.astype("float32"), y_check)


def read_task(arguments: Sequence[str]) -> Task:
    """Read the task from the folder that the command line names."""
    folder = Path(arguments[1])
    fields = json.loads((folder / "task.json").read_text())
    trials, names = tuple(fields.pop("trials")), tuple(fields.pop("class_names"))
    return Task(**fields | {"folder": folder, "trials": trials, "class_names": names})


def open_experiment(task: Task) -> str:
    """Point MLflow at the peer's store and return its experiment's id; the first process here makes it, others wait."""
    import mlflow
    from filelock import FileLock

    mlflow.set_tracking_uri(task.tracking_uri)
    with FileLock(task.folder / "mlflow.lock"):
        if mlflow.get_experiment_by_name(EXPERIMENT) is None:
            mlflow.create_experiment(EXPERIMENT, (task.folder / "artifacts").as_uri())
    return str(mlflow.set_experiment(EXPERIMENT).experiment_id)


def configure(task: Task) -> None:
    """Give TensorFlow the threads of the task, where it names them; before the first operation."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    if task.threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(task.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
