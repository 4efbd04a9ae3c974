"""The promises of `deploy/`: servers that answer their health checks, ask for a log-in, and keep their passwords."""

import base64
import json
import stat
import subprocess
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request

import psycopg
import pytest

from benchmarks.servers import DEPLOY, OPENER, Postgres, TeamMlflow
from tests.support.processes import ProcessList

pytestmark = pytest.mark.slow

EXPERIMENTS = "/api/2.0/mlflow/experiments/search"


def status(
    team: TeamMlflow, path: str, login: str | None = None, body: object = None, host: str | None = None
) -> tuple[int, str]:
    headers = {"Content-Type": "application/json"}
    if login is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    if host is not None:
        headers["Host"] = host
    data = None if body is None else json.dumps(body).encode()
    try:
        with OPENER.open(Request(team.address + path, data, headers), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_databases_are_made_once_and_every_role_sees_its_own(postgres: Postgres) -> None:
    with ProcessList() as processes:
        again = postgres.make_databases()

    assert (again.stdout, again.stderr) == ("", "")
    assert postgres.query("SELECT 1") == [(1,)]
    assert postgres.query("SELECT 1", "mlflow_auth", "mlflow") == [(1,)]
    for database, role in (("mlflow", "optuna"), ("mlflow_auth", "optuna"), ("optuna", "mlflow")):
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            postgres.query("SELECT 1", database, role)
    for password in postgres.passwords.values():
        assert password not in postgres.log
        assert not [command for command in processes.seen if password in command]


@pytest.mark.parametrize("role", ["optuna", "mlflow", "postgres"])
def test_nobody_logs_in_over_the_network_without_a_password(role: str, postgres: Postgres) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"password|authentication"):
        psycopg.connect(postgres.address("postgres", role), password="guessed")


def test_a_network_is_admitted_once_over_several_starts(postgres: Postgres) -> None:
    postgres.stop()
    postgres.start()

    rules = (postgres.folder / "cluster" / "pg_hba.conf").read_text().splitlines()
    assert rules.count("host all all 127.0.0.0/8 scram-sha-256") == 1
    assert postgres.query("SELECT 1") == [(1,)]


@pytest.mark.parametrize("path", ["/", EXPERIMENTS, "/api/2.0/mlflow-artifacts/artifacts", "/graphql", "/version"])
@pytest.mark.parametrize("login", [None, "ana:guessed", "admin:password1234", "admin:"])
def test_the_mlflow_server_answers_nobody_without_a_log_in(path: str, login: str | None, team: TeamMlflow) -> None:
    assert status(team, path, login)[0] == 401


@pytest.mark.parametrize(
    "path", ["/health", "/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info", "/static-files/none.js"]
)
def test_answers_without_a_log_in_are_known_and_name_nothing(path: str, team: TeamMlflow, postgres: Postgres) -> None:
    code, said = status(team, path)
    assert code in (200, 404)
    for word in (team.account, team.password, team.admin_password, *postgres.passwords.values(), str(postgres.folder)):
        assert word not in said


def test_an_account_writes_experiments_and_administers_nothing(team: TeamMlflow) -> None:
    own = f"{team.account}:{team.password}"
    assert status(team, EXPERIMENTS, own, {"max_results": 1})[0] == 200
    assert status(team, "/api/2.0/mlflow/experiments/create", own, {"name": "of ana"})[0] == 200

    account = {"username": "eve", "password": "a-long-enough-one"}
    assert status(team, "/api/2.0/mlflow/users/create", own, account)[0] == 403


def test_an_account_is_given_another_password(team: TeamMlflow) -> None:
    again = team.make_account()
    assert (again.returncode, again.stdout) == (0, f"{team.account} has a new password\n")


@pytest.mark.parametrize(
    ("words", "changes", "said"),
    [
        (["eve"], {"MLFLOW_AUTH_ADMIN_PASSWORD": "guessed"}, "Correct MLFLOW_AUTH_ADMIN_PASSWORD"),
        ([], {}, "python3 deploy/account.py NAME"),
        (["eve"], {"ACCOUNT_PASSWORD": ""}, "Expected: MLFLOW_TRACKING_URI=... "),
        (["eve"], {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}, "No MLflow server answers"),
        (["eve"], {"MLFLOW_TRACKING_URI": "127.0.0.1:1"}, "correct MLFLOW_TRACKING_URI"),
        (["eve"], {"ACCOUNT_PASSWORD": "short"}, "The server refuses: "),
    ],
)
def test_an_account_that_cannot_be_made_is_refused_in_one_line(
    words: list[str], changes: dict[str, str], said: str, team: TeamMlflow
) -> None:
    refused = team.run_account(*words, **changes)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert (refused.stderr.count("\n"), refused.stdout) == (1, "")
    assert "guessed" not in refused.stderr


def test_other_hosts_names_are_refused(team: TeamMlflow) -> None:
    own = f"{team.account}:{team.password}"
    code, said = status(team, EXPERIMENTS, own, {"max_results": 1}, host="evil.example")
    assert (code, "Invalid Host header" in said) == (403, True)


def test_jobs_are_off_for_the_administrator_too(team: TeamMlflow) -> None:
    job = {"job_name": "invoke_genai_evaluate", "params": {}}
    code, said = status(team, "/ajax-api/3.0/jobs/", f"admin:{team.admin_password}", job)
    assert (code, "job execution feature is not enabled" in said) == (500, True)


def test_no_password_of_the_servers_is_told(team: TeamMlflow, postgres: Postgres) -> None:
    with ProcessList() as processes:
        assert status(team, EXPERIMENTS, f"{team.account}:{team.password}", {"max_results": 1})[0] == 200
    secrets = (team.password, team.admin_password, *postgres.passwords.values())

    settings = sorted((postgres.folder / "mlflow").iterdir())
    assert [path.name for path in settings if path.is_file()] == ["basic_auth.ini", "secret_key"]
    for path in (path for path in settings if path.is_file()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not [secret for secret in secrets if secret in path.read_text()]
    assert any("mlflow.server.auth" in command for command in processes.seen)
    for secret in secrets:
        assert not [command for command in processes.seen if secret in command]
        assert secret not in team.log + postgres.log


@pytest.mark.parametrize(
    ("file", "missing"),
    [("postgres.sh", "PGDATA"), ("databases.sh", "OPTUNA_DB_PASSWORD"), ("mlflow.sh", "MLFLOW_DATA")],
)
def test_what_a_server_cannot_do_without_is_named(file: str, missing: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(DEPLOY / file)], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode != 0
    assert missing in done.stderr
    assert list(tmp_path.iterdir()) == []
