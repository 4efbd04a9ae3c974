"""A study over the servers of a team: the same commands, the same evidence, and no password anywhere."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.servers import Postgres, TeamMlflow
from fashion_study.errors import ExitCode, StoreError
from tests.deploy.conftest import Command
from tests.support.processes import ProcessList

SMALL = ("--space", "smoke", "--dataset", "digits", "--workers", "1", "--precision", "float32")
STUDY = "digits-smoke"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True, eq=False)
class Ran:
    """A study that has been run to its end, and what could be seen of it meanwhile."""

    folder: Path
    done: "subprocess.CompletedProcess[str]"
    commands: set[str]


@pytest.fixture(scope="module")
def ran(run: Command, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("team")
    # The other way to name the trial storage: the commands after this one have OPTUNA_STORAGE.
    own = {"OPTUNA_STORAGE": "", "PGPASSWORD": postgres.passwords["optuna"]}
    words = ("--study-db", postgres.address(), "--trials", "3", "--finalists", "1", "--repeats", "1")
    with ProcessList() as processes:
        done = run("run_study", *SMALL, *words, cwd=folder, environment=own)
    assert done.returncode == ExitCode.DONE, done.stdout + done.stderr
    return Ran(folder, done, processes.seen)


def test_ledger_runs_and_models_lie_on_the_servers_alone(ran: Ran, postgres: Postgres, team: TeamMlflow) -> None:
    # Other tests' studies lie on the same servers.
    trials = postgres.query(
        f"SELECT state::text FROM trials JOIN studies USING (study_id) WHERE study_name = '{STUDY}'"
    )
    states = [state for (state,) in trials]
    assert (len(states), set(states) <= {"COMPLETE", "WAITING"}) == (3, True)  # Waiting: paused.
    # A run of the study, one of each trial, one of the finalist's repeat.
    assert _of_the_study("count(*)", "status <> 'RUNNING'", postgres) == [(5,)]
    assert list((postgres.folder / "mlflow" / "artifacts").rglob("model.keras"))
    assert f"MLflow UI:    {team.address}/#/experiments/" in ran.done.stdout
    # What is of use to a worker alone stays with it.
    assert {path.name for path in (ran.folder / "mlruns").iterdir()} <= {"checkpoints", "locks", "logs"}


def test_next_commands_name_the_database_and_the_run_does_not(ran: Ran, postgres: Postgres) -> None:
    assert f"OPTUNA_STORAGE={postgres.address()} " in ran.done.stdout
    assert f"--study-db {postgres.address()}" in ran.done.stdout
    ((command,),) = _of_the_study(
        "command.value", "command.key = 'command'", postgres, "JOIN tags AS command USING (run_uuid)"
    )
    assert str(command).startswith("python -m experiments.run_study ")
    assert "postgresql" not in str(command)


def test_what_comes_after_a_study_works_over_the_servers(
    ran: Ran, run: Command, team: TeamMlflow, tmp_path: Path
) -> None:
    again = run("run_study", *SMALL, "--trials", "3", "--finalists", "1", "--repeats", "1", cwd=ran.folder)
    assert (again.returncode, "Nothing left to do" in again.stdout) == (0, True), again.stderr

    report = run("report", STUDY, cwd=ran.folder)
    assert (report.returncode, "also on the study's run" in report.stdout) == (0, True), report.stderr
    assert "confusion" in (ran.folder / f"{STUDY}.html").read_text().lower()

    promoted = run("promote", "--force", "the first one", cwd=ran.folder)
    assert (promoted.returncode, "is champion now" in promoted.stdout) == (0, True), promoted.stderr

    Image.fromarray(np.pad(np.full((8, 4), 200, dtype=np.uint8), 4)).save(ran.folder / "digit.png")
    predicted = run("predict", "digit.png", cwd=ran.folder)
    assert (predicted.returncode, "digit.png" in predicted.stdout) == (0, True), predicted.stderr

    ui = run("ui", cwd=ran.folder)
    assert (ui.returncode, "/#/experiments/" in ui.stdout) == (0, True), ui.stderr

    # As on a machine that has never run a study.
    (tmp_path / "new").mkdir()
    healthy = run("doctor", cwd=tmp_path / "new")
    assert (healthy.returncode, "Nothing is wrong" in healthy.stdout) == (0, True), healthy.stdout + healthy.stderr
    assert f"MLflow's data lie at {team.address}: " in healthy.stdout


def test_a_wrong_password_ends_with_one_message(
    run: Command, postgres: Postgres, team: TeamMlflow, tmp_path: Path
) -> None:
    wrong = {
        "OPTUNA_STORAGE": postgres.address().replace("optuna@", "optuna:sesame@"),
        "MLFLOW_TRACKING_URI": team.address.replace("://", f"://{team.account}:sesame@"),
    }
    for name, value in wrong.items():
        refused = run("run_study", *SMALL, "--study", "wrong", cwd=tmp_path, environment={name: value})
        assert refused.returncode == ExitCode.STORE, refused.stdout + refused.stderr
        assert refused.stderr.count("Error: ") == 1
        assert "Traceback" not in refused.stderr
        assert "sesame" not in refused.stdout + refused.stderr
    assert f"refuses the account {team.account!r}: 401" in refused.stderr
    assert "MLFLOW_TRACKING_USERNAME" in refused.stderr
    # Refused before anything is made or started.
    assert postgres.query("SELECT count(*) FROM studies WHERE study_name = 'wrong'") == [(0,)]
    assert "starting" not in refused.stdout + refused.stderr


def test_a_user_without_an_account_is_told_so_and_leaves_nothing(
    run: Command, team: TeamMlflow, tmp_path: Path
) -> None:
    own = {"OPTUNA_STORAGE": "", "MLFLOW_TRACKING_URI": team.address}
    refused = run("run_study", *SMALL, cwd=tmp_path, environment=own)
    assert refused.returncode == ExitCode.STORE
    assert "refuses a user who names no account: 401" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_log_in_in_mlflow_s_own_file_is_taken(
    team: TeamMlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fashion_study.store.store import open_store

    login = f"[mlflow]\nmlflow_tracking_username = {team.account}\nmlflow_tracking_password = {team.password}\n"
    folder = tmp_path / ".mlflow"
    folder.mkdir()
    (folder / "credentials").write_text(login)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team.address)
    assert open_store(tmp_path / "store").client().search_experiments(max_results=1) is not None


def test_a_password_that_is_changed_meanwhile_is_named_too(
    team: TeamMlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fashion_study.store.store import open_store

    monkeypatch.setenv("MLFLOW_TRACKING_URI", team.address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", team.account)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", team.password)
    store = open_store(tmp_path)
    client = store.client()

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "sesame")
    with pytest.raises(StoreError, match=f"refuses the account '{team.account}'.* 401 .*MLFLOW_TRACKING_PASSWORD"):
        store.experiment_id(client, "digits")


def test_a_password_on_the_command_line_is_refused_at_once(run: Command, tmp_path: Path) -> None:
    refused = run("run_study", "--study-db", "postgresql://optuna:sesame@127.0.0.1/optuna", cwd=tmp_path)
    assert refused.returncode == ExitCode.BAD_INPUT
    assert "PGPASSWORD" in refused.stderr
    assert "sesame" not in refused.stdout + refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_password_reaches_output_runs_files_or_process_lists(ran: Ran, postgres: Postgres, team: TeamMlflow) -> None:
    secrets = {team.password, team.admin_password, *postgres.passwords.values()}
    told = {secret for secret in secrets if secret in ran.done.stdout + ran.done.stderr + team.log + postgres.log}
    assert told == set()

    assert any("fashion_study.worker.process" in command for command in ran.commands)
    assert [command for command in ran.commands if any(secret in command for secret in secrets)] == []

    places = (ran.folder, postgres.folder / "mlflow" / "artifacts")
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    assert [path for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)] == []
    for text in (*_everything(postgres, "optuna", "optuna"), *_everything(postgres, "mlflow", "mlflow")):
        assert [secret for secret in secrets if secret in text] == []


def _of_the_study(what: str, where: str, postgres: Postgres, join: str = "") -> list[tuple[object, ...]]:
    """Ask MLflow's database about the runs of the study."""
    return postgres.query(
        f"SELECT {what} FROM runs JOIN tags AS study USING (run_uuid) {join} "
        f"WHERE study.key = 'study' AND study.value = '{STUDY}' AND {where}",
        "mlflow",
        "mlflow",
    )


def _everything(postgres: Postgres, database: str, role: str) -> Iterator[str]:
    """Write out every row of every table of a database."""
    tables = postgres.query("SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'", database, role)
    assert tables
    for (table,) in tables:
        yield str(postgres.query(f"SELECT * FROM {table}", database, role))
