"""Make a real model's folder for toy workers to log: `python -m tests.faults.toy_model FOLDER`."""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fashion_study.space.file import load_space
from fashion_study.store.relocation import local_path
from fashion_study.store.store import open_store
from fashion_study.training.model import build_model, to_float32
from fashion_study.worker.record import record_model


def main() -> None:
    with TemporaryDirectory() as scratch:
        store = open_store(scratch)
        client = store.client()
        run_id = client.create_run(store.experiment_id(client, "digits")).info.run_id
        # Of the sizes that the first trial's run names: a model is loaded with the parameters of its run.
        params = load_space("smoke").baseline_point
        logged = record_model(client, run_id, to_float32(build_model(params, (28, 28, 1), 10), params), params)
        folder = local_path(client.get_logged_model(logged.uri.removeprefix("models:/")).artifact_location)
        assert folder is not None
        unfinished = Path(f"{sys.argv[1]}.part")
        shutil.copytree(folder, unfinished)
        unfinished.rename(sys.argv[1])


if __name__ == "__main__":
    main()
