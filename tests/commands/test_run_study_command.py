import json
import os
import pty
import re
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from experiments._entry import run
from experiments.run_study import main
from fashion_study.data.fashion_mnist import OFFICIAL_FILES
from tests.support.commands import call_command
from tests.support.finished import copy_store
from tests.support.optuna_client import trials_of
from tests.support.processes import started_process

ROOT = Path(__file__).parents[2]
SLOW_LIBRARIES = {"tensorflow", "keras", "keras_tuner", "mlflow", "optuna", "sklearn", "pandas", "matplotlib"}
# As in a notebook: no file, and nothing that keeps a child process from running it again.
NOTEBOOK = """
import json, sys
from fashion_study import StudyConfig, run_study

asked = dict(space="smoke", dataset="digits", trials=1, workers=1, precision="float32", store=sys.argv[1])
try:
    run_study(StudyConfig(**asked, limit_train=3))
except Exception as error:
    refusal = f"{type(error).__name__}: {error}"
result = run_study(StudyConfig(**asked))
print(json.dumps({
    "refusal": refusal, "best": result.best.number, "objective": result.best.objective, "run": result.best.run_id,
    "tracking_uri": result.store.tracking_uri, "counted": result.counted, "began_with": result.began_with,
}))
"""


def call(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Run the command in this process, as its entry point does, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["run_study", *options])
    with pytest.raises(SystemExit) as ending:
        run(main)
    assert isinstance(ending.value.code, int)
    return ending.value.code


def message(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed as one line of words; nothing but a message on stderr is right for a refusal."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert printed.err.count("Error") == 1
    return " ".join(re.sub("[│╭╮╰╯─]", " ", printed.err).split())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--space", "smok"],
            "There is no search space named 'smok' (did you mean smoke?). Available: baseline, smoke",
        ),
        (["--space", "./nowhere.yaml"], "nowhere.yaml"),
        (["--try", "learning_rate=1"], "--try 'learning_rate=1' is no JSON object"),
        (["--try", "[0.002]"], "--try '[0.002]' is no JSON object"),
        (["--try", "[" * 100_000], "is no JSON object"),
        (["--try", '{"learning_rat": 0.002}'], "did you mean learning_rate?"),
        (["--try", '{"learning_rate": 5}'], "learning_rate: found 5; allowed: a number from 0.0001 to 0.01"),
        (["--try", '{"learning_rate": NaN}'], "allowed: a finite number"),
        (["--try", '{"epochs": true}'], "found True"),
        (["--try", '{"batch_size": 32}'], "batch_size is fixed at 64"),
        (["--timeout", "soon"], "--timeout 'soon' is no duration. Expected for instance 90s, 30m, 1h30m"),
        (["--budget", "soon"], "--budget 'soon' is no duration"),
        (["--plan"], "Expected --budget beside it, for instance 60m"),
        (["--max-parameters", "0"], "max_parameters is 0"),
        (["--trials", "0"], "trials is 0: Input should be greater than or equal to 1"),
        (["--trials", "many"], "Invalid value for '--trials'"),
        (["--trials", "20.0"], "Invalid value for '--trials': expected a valid integer, such as 20"),
        (["--seed", "1e3"], "Invalid value for '--seed': expected a valid integer"),
        (["--workers", "0"], "workers is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--study", "a/b"], "study is 'a/b'"),
        (["--sampler", "magic"], "'magic' is not one of 'tpe'"),
        (["--unknown"], "No such option: --unknown"),
    ],
)
def test_bad_input_is_refused_before_a_store_is_made(
    options: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = tmp_path / "store"
    fixed = ["--space", "smoke", "--dataset", "digits", "--store", str(store)]
    assert call(monkeypatch, *fixed, *options) == 2
    assert expected in message(capsys)
    assert not store.exists()


def test_a_store_that_is_a_file_is_refused_as_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    store.write_text("no folder")
    assert call(monkeypatch, "--space", "smoke", "--dataset", "digits", "--store", str(store)) == 3
    assert str(store) in message(capsys)
    assert store.read_text() == "no folder"


@pytest.mark.parametrize("database", ["optuna.db", "mlflow.db"])
def test_a_damaged_database_is_refused_as_a_store(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / database).write_text("This was a database once; something else has been written over it.")
    fixed = ["--space", "smoke", "--dataset", "digits", "--workers", "1"]
    assert call(monkeypatch, *fixed, "--store", str(tmp_path)) == 3
    errors = capsys.readouterr().err
    assert database in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("dataset", ["auto", "fashion-mnist"])
def test_damaged_images_are_refused_and_never_replaced(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in OFFICIAL_FILES:
        (tmp_path / name).write_bytes(b"not what it should be")
    store = tmp_path / "store"
    named = ["--data-dir", str(tmp_path), "--store", str(store)]
    assert call(monkeypatch, "--space", "smoke", "--dataset", dataset, *named) == 4
    assert str(tmp_path / next(iter(OFFICIAL_FILES))) in message(capsys)
    assert not store.exists()


@pytest.mark.parametrize("options", [["--trials", "0"], ["--space", "smok"], ["--try", "{"], ["--sampler", "magic"]])
def test_a_refusal_waits_for_no_slow_library(options: list[str]) -> None:
    code = (
        "import json, runpy, sys\n"
        "try:\n"
        "    runpy.run_module('experiments.run_study', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as ending:\n"
        "    print(json.dumps([ending.code, sorted(sys.modules)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    exit_code, modules = json.loads(done.stdout)
    assert exit_code == 2
    assert "typer" in modules
    assert SLOW_LIBRARIES & set(modules) == set()


@pytest.fixture(scope="module")
def begun_in_a_notebook(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    store = tmp_path_factory.mktemp("notebook") / "store"
    done = subprocess.run(
        [sys.executable, "-", str(store)],
        input=NOTEBOOK,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return store, json.loads(done.stdout)


def test_a_notebook_runs_a_study_and_gets_its_results(begun_in_a_notebook: tuple[Path, dict[str, object]]) -> None:
    _, result = begun_in_a_notebook
    assert (result["began_with"], result["counted"], result["best"]) == (0, 1, 0)
    run = mlflow.MlflowClient(str(result["tracking_uri"])).get_run(str(result["run"]))
    assert run.info.status == "FINISHED"
    assert run.data.metrics["objective"] == result["objective"]


def test_a_limit_beyond_the_images_leaves_no_study_behind(
    begun_in_a_notebook: tuple[Path, dict[str, object]],
) -> None:
    _, result = begun_in_a_notebook
    assert str(result["refusal"]).startswith("BadInputError: ")
    assert "--limit-train is 3. Expected 20 to 1,079" in str(result["refusal"])


def test_a_terminal_resumes_a_notebook_s_study_with_live_bars(
    begun_in_a_notebook: tuple[Path, dict[str, object]],
) -> None:
    store, _ = begun_in_a_notebook
    options = ["--space", "smoke", "--dataset", "digits", "--store", str(store), "--trials", "2", "--workers", "1"]
    exit_code, screen = on_a_terminal([sys.executable, "-m", "experiments.run_study", *options])
    assert exit_code == 0, screen
    assert "\x1b[1A" in screen  # Lines are drawn over, not only added.
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)
    assert re.search(r"trials +\S+ 1/2", shown)
    assert re.search(r"trials +\S+ 2/2 +best 0\.\d{4} \(trial 00\d\)", shown)
    assert re.search(r"trial 001 +\S+ 1/\d +val_accuracy 0\.\d{4}", shown)
    assert "2 of 2 trials done, 1 of them now" in shown


def on_a_terminal(command: list[str]) -> tuple[int, str]:
    """Run a command in a pseudo-terminal and return its exit code and all that it drew."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    drawn: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # Linux ends a pseudo-terminal with an error.
            while piece := os.read(ours, 65_536):
                drawn.append(piece)

    reader = threading.Thread(target=read)
    with started_process(command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        reader.start()
        exit_code = process.wait(timeout=280)
    reader.join()
    os.close(ours)
    return exit_code, b"".join(drawn).decode()


def test_a_plan_is_measured_and_leaves_nothing_behind(tmp_path: Path) -> None:
    words = "--space smoke --dataset digits --precision float32 --workers 1 --budget 10m --plan --store"

    planned = call_command("experiments.run_study", *words.split(), str(tmp_path / "store"))

    assert planned.returncode == 0, planned.stdout + planned.stderr
    found = re.fullmatch(
        r"plan for 10 min: an epoch takes about [\d.]+ s \([\d.]+ to [\d.]+ s in 9 models\), workers: 1\n"
        r"  search     \d+ (?:s|min), trials: about [\d,]+, epochs: about [\d,]+\n"
        r"  finalists  \d+ (?:s|min), up to 9 trainings of 3 epochs\n"
        r"  needs      about [\d.]+ GiB of memory and [\d,]+ MiB of disk\n"
        r"  in twice the time, trials: about [\d,]+\n",
        planned.stdout,
    )
    assert found, planned.stdout
    assert list(tmp_path.iterdir()) == []


def test_close_prunes_the_paused_trials_of_a_study_that_has_ended(finished_study: Path, tmp_path: Path) -> None:
    store = copy_store(finished_study, tmp_path / "store")
    paused = [trial for trial in trials_of(store, "digits-smoke") if trial.state is TrialState.WAITING]
    assert paused
    words = "--space smoke --dataset digits --precision float32 --trials 4 --workers 1 --finalists 0 --close --store"

    closed = call_command("experiments.run_study", *words.split(), str(store))

    assert closed.returncode == 0, closed.stdout + closed.stderr
    assert f"--close: paused trials that are pruned now: {len(paused)}" in closed.stdout
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    ended = {trial.number: trial for trial in trials_of(store, "digits-smoke")}
    for before in paused:
        trial = ended[before.number]
        run = client.get_run(trial.user_attrs["run_id"])
        assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, before.intermediate_values)
        assert (run.info.status, run.data.tags["state"]) == ("KILLED", "pruned")
    again = call_command("experiments.run_study", *words.split(), str(store))
    assert (again.returncode, "Nothing left to do" in again.stdout) == (0, True)
