import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fashion_study.tracking.registry import CHAMPION
from tests.support.commands import call_command
from tests.support.model_store import ModelStore, digits, trained

ROOT = Path(__file__).parents[2]
SLOW_LIBRARIES = {"keras", "mlflow", "optuna", "tensorflow"}


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.predict", *map(str, words)],
        cwd=ROOT,
        # Wide enough for the paths of a test.
        env=os.environ | {"COLUMNS": "240"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    models = ModelStore(tmp_path_factory.mktemp("predict") / "store")
    version = models.register(models.trial(models.study("digits-small"), 0, trained(8)))
    models.registry.move_alias(version.name, CHAMPION, version.number)
    return models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder of three pictures, a broken one and a file of another kind."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, image in zip(("c.png", "a.JPG", "b.jpeg"), digits().validation.images, strict=False):
        Image.fromarray(image[..., 0]).resize((280, 280)).save(folder / name)
    (folder / "broken.png").write_text("no picture")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_a_folder_is_predicted_and_unreadable_files_are_named(models: ModelStore, folder: Path) -> None:
    done = command(folder, "--store", models.root)
    assert done.returncode == 1
    rows = [line for line in done.stdout.splitlines() if "%" in line]
    assert [Path(row.split()[0]).name for row in rows] == ["a.JPG", "b.jpeg", "c.png"]
    (error,) = done.stderr.splitlines()
    assert str(folder / "broken.png") in error


def test_json_is_all_that_a_program_reads(models: ModelStore, folder: Path) -> None:
    (folder / "broken.png").unlink()
    words = (folder / "c.png", folder, "--json", "--model", "models:/digits-cnn/1", "--store", models.root)
    done = call_command("experiments.predict", *map(str, words))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [Path(one["picture"]).name for one in found] == ["c.png", "a.JPG", "b.jpeg", "c.png"]
    assert all(len(one["classes"]) == 3 for one in found)
    assert found[0] == found[-1]


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, folder: Path) -> None:
    done = command(folder, "--store", tmp_path / "nowhere")
    assert done.returncode == 3
    assert "experiments.run_study" in done.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "No picture is given"),
        (("{empty}",), "has no picture"),
        (("{folder}", "--model", "champion"), "models:/NAME@ALIAS"),
        (("{folder}", "--modle", "x"), "--modle"),
    ],
)
def test_bad_input_is_refused_and_waits_for_no_slow_library(
    words: tuple[str, ...], expected: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    code = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('experiments.predict', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as ending:\n"
        "    print(ending.code, *sys.modules)\n"
    )
    filled = [word.format(empty=tmp_path / "empty", folder=folder) for word in words]
    done = subprocess.run(
        [sys.executable, "-c", code, *filled], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    exit_code, *modules = done.stdout.split()
    assert exit_code == "2"
    assert expected in done.stderr
    assert SLOW_LIBRARIES & set(modules) == set()
