"""A team's servers, started from the files in `deploy/` on free ports; they end with the process that started them."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import psutil

from fashion_study.mlflow_ui.server import choose_port

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
HOST = "127.0.0.1"
# How long a start may take on a busy machine before something must be wrong.
START_TIMEOUT = 300
PROGRAMS = Path("/usr/lib/postgresql")
# Not through a proxy that the environment may name.
OPENER = build_opener(ProxyHandler({}))


class Server:
    """One of the files in `deploy/`, in the foreground of a process that ends with this one."""

    def __init__(self, file: str, log: Path, environment: Mapping[str, str], *arguments: str) -> None:
        self._command = [sys.executable, "-m", "fashion_study.mlflow_ui.watchdog", str(DEPLOY / file), *arguments]
        self.log = log
        self._environment = {**clean_environment(), "PYTHONPATH": f"{ROOT / 'src'}", **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, is_healthy: Callable[[], bool]) -> None:
        """Start, and wait until it answers."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=self._environment,
                process_group=0,  # A signal to the tests' group must leave it to the watchdog to end the server.
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not is_healthy():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        """Return the id of the process under which all of the server's run."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Signal the server itself, and wait until it has ended."""
        assert self._process is not None
        (server,) = psutil.Process(self._process.pid).children()
        server.send_signal(number)
        self._process.wait(START_TIMEOUT)
        self.stop()

    def stop(self) -> None:
        """Close the pipe that the watchdog reads."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(START_TIMEOUT)
            self._process = None


class Postgres:
    """A PostgreSQL server with the databases of a team, all passwords of its own.

    One that is `is_careful` waits for the disk with every commit, as it does by default; the tests never take the power
    from the machine.
    """

    def __init__(self, folder: Path, is_careful: bool = False) -> None:
        self.folder = folder
        self.port = choose_port(0)
        self.passwords = {"optuna": f"o/{secrets.token_hex(12)}", "mlflow": f"m'{secrets.token_hex(12)}"}
        arguments = () if is_careful else ("-c", "fsync=off")
        self._server = Server("postgres.sh", folder / "postgres.log", self._variables, *arguments)

    @property
    def _variables(self) -> dict[str, str]:
        return {"PGDATA": str(self.folder / "cluster"), "PGPORT": str(self.port), "ALLOW": "127.0.0.0/8"}

    @property
    def log(self) -> str:
        """Return what the server has written."""
        return (self.folder / "postgres.log").read_text()

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        self._server.start(self.is_healthy)

    def make_databases(self) -> "subprocess.CompletedProcess[str]":
        """Make what is not there yet, and set the passwords."""
        own = {f"{role.upper()}_DB_PASSWORD": password for role, password in self.passwords.items()}
        # The superuser comes in over the socket alone.
        where = {"PGHOST": str(self.folder / "cluster"), "PGPORT": str(self.port)}
        command = [str(DEPLOY / "databases.sh")]
        environment = clean_environment() | own | where
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True)

    def is_healthy(self) -> bool:
        """Ask as an operator would."""
        command = ["pg_isready", "--quiet", "--host", HOST, "--port", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def address(self, database: str = "optuna", role: str = "optuna") -> str:
        """Return the address of a database, with no password in it."""
        return f"postgresql://{role}@{HOST}:{self.port}/{database}"

    def driver_address(self) -> str:
        """Return the URL of the trials' database, as SQLAlchemy takes it."""
        return self.address().replace("postgresql:", "postgresql+psycopg:", 1)

    def query(self, statement: str, database: str = "optuna", role: str = "optuna") -> list[tuple[object, ...]]:
        """Ask a database as one of its roles."""
        import psycopg

        with psycopg.connect(self.address(database, role), password=self.passwords[role]) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @property
    def pid(self) -> int:
        """Return the id of the process under which all of its run."""
        return self._server.pid

    def die(self) -> None:
        """Kill the server."""
        self._server.signal(signal.SIGKILL)

    def stop(self) -> None:
        """End, and wait for it."""
        self._server.stop()


class TeamMlflow:
    """An MLflow server on a PostgreSQL server, with one account that is no administrator's."""

    account = "ana"

    def __init__(self, folder: Path, postgres: Postgres) -> None:
        self.port = choose_port(0)
        self.admin_password, self.password = (f"p@{secrets.token_hex(12)}" for _ in range(2))
        variables = {
            "MLFLOW_DATA": str(folder / "mlflow"),
            "PGHOST": HOST,
            "PGPORT": str(postgres.port),
            "PGPASSWORD": postgres.passwords["mlflow"],
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.admin_password,
            "PORT": str(self.port),
            "WORKERS": "1",
            "PYTHON": sys.executable,
        }
        self._server = Server("mlflow.sh", folder / "mlflow.log", variables)

    @property
    def address(self) -> str:
        """Return where it answers."""
        return f"http://{HOST}:{self.port}"

    @property
    def log(self) -> str:
        """Return what the server has written."""
        return self._server.log.read_text()

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._server.start(self.is_healthy)

    def make_account(self) -> "subprocess.CompletedProcess[str]":
        """Make the account, or give it its password again."""
        return self.run_account(self.account)

    def run_account(self, *arguments: str, **changes: str) -> "subprocess.CompletedProcess[str]":
        """Run `account.py` with the administrator's environment, changed."""
        own = {
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.admin_password,
            "ACCOUNT_PASSWORD": self.password,
        }
        command = [sys.executable, str(DEPLOY / "account.py"), *arguments]
        environment = clean_environment() | own | changes
        return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)

    def is_healthy(self) -> bool:
        """Ask as an operator would."""
        try:
            with OPENER.open(f"{self.address}/health", timeout=5):
                return True
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """Return the id of the process under which all of its run."""
        return self._server.pid

    def stop(self) -> None:
        """End, and wait for it."""
        self._server.stop()


@contextmanager
def server_folder() -> Iterator[Path]:
    """Give a folder that PostgreSQL's own account may enter, as pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="fashion-study-servers-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def has_postgres() -> bool:
    """Return whether Debian's package `postgresql` is installed."""
    return any(PROGRAMS.glob("*/bin/postgres"))


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what names another server."""
    foreign = ("PG", "MLFLOW_", "OPTUNA_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
