"""The promises on a read-only store and on one of earlier libraries: reading leaves it as it is, writing says so."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support.commands import call_command
from tests.support.finished import ROOT, copy_store
from tests.support.untouched import content, is_earlier, make_older, read_only

SEVEN = str(ROOT / "docs" / "samples" / "digit-7.png")


@pytest.fixture
def root(finished_study: Path, tmp_path: Path) -> Path:
    return copy_store(finished_study, tmp_path / "store")


@pytest.mark.parametrize("kind", ["older", "read-only"])
def test_reading_leaves_a_store_as_it_is(kind: str, root: Path, tmp_path: Path) -> None:
    if kind == "older":
        make_older(root)
    before, store = content(root), ("--store", str(root))
    with read_only(root) if kind == "read-only" else nullcontext():
        doctor = call_command("experiments.doctor", *store, columns=200)
        predicted = call_command("experiments.predict", SEVEN, "--model", "models:/digits-cnn@challenger", *store)
        page = tmp_path / "page.html"
        reported = call_command("experiments.report", "digits-smoke", "--output", str(page), *store)

    for done in (doctor, predicted, reported):
        assert (done.returncode, done.stderr) == (0, ""), done
    why = "they are of an earlier MLflow or Optuna" if kind == "older" else "the store is read-only"
    assert doctor.stdout == f"Copies of the databases were looked at: {why}.\nNothing is wrong with {root}.\n"
    assert predicted.stdout.count("%") == 3
    assert "digits-smoke" in page.read_text()
    # The one file that is written on purpose.
    written = {name for name, digest in content(root).items() if before.get(name) != digest}
    assert [Path(name).name for name in written] == (["report.html"] if kind == "older" else [])
    assert ("also on the study's run" in reported.stdout) == (kind == "older")
    assert before.keys() <= content(root).keys()
    assert is_earlier(root) == (kind == "older")


@pytest.mark.parametrize(
    ("words", "what_for"),
    [
        ("promote --dry-run", "a dry run, too, counts there what it reads of the holdout"),
        ("promote --rollback", "a dry run, too, counts there what it reads of the holdout"),
        ("doctor --fix", "what is repaired is written there"),
        ("ui", "MLflow's server works on its database"),
    ],
)
def test_writing_to_a_read_only_store_says_what_for(words: str, what_for: str, root: Path) -> None:
    command, *options = words.split()
    with read_only(root):
        done = call_command(f"experiments.{command}", *options, "--store", str(root))
    assert done.returncode == 3
    assert f"The store {root} is read-only. Expected a folder that may be written: {what_for}. Change" in done.stderr


def test_a_study_migrates_its_store_after_a_copy_and_says_so(root: Path) -> None:
    make_older(root, "optuna")
    options = "--space smoke --dataset digits --precision float32 --trials 4 --workers 1 --finalists 0"
    done = call_command("experiments.run_study", *options.split(), "--store", str(root), columns=400)
    assert done.returncode == 0, done
    (line,) = (line for line in done.stderr.splitlines() if "of an earlier" in line)
    assert line.startswith(f"Warning: {root / 'optuna.db'} was of an earlier optuna")
    (copy,) = re.findall(r"a copy from before is (\S+)", line)
    assert [Path(copy)] == list((root / "backups").iterdir())
