"""The promises of a database's address: any other text is refused, and its password is never shown."""

import sys
from pathlib import Path

import pytest

from fashion_study.config import StudyConfig
from fashion_study.database_url import trials_database_url
from fashion_study.errors import BadInputError, ExitCode
from fashion_study.store.store import find_store

PLAIN = "postgresql+psycopg://ana@db.example:5433/optuna"


@pytest.mark.parametrize(
    "scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2", "postgres+pg8000"]
)
def test_a_password_of_the_environment_is_not_shown(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", f"'{scheme}://ana:s%2Fecret@db.example:5433/optuna?sslmode=require'\n")

    found = trials_database_url(None)

    assert found is not None
    assert (found.uri, found.password) == (f"{PLAIN}?sslmode=require", "s/ecret")
    assert str(found) == "db.example:5433/optuna"
    assert "ecret" not in repr(found)


def test_the_option_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trials_database_url(None) is None
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://other:secret@elsewhere/optuna")

    found = trials_database_url("postgresql://ana@db.example:5433/optuna")

    assert found is not None
    assert (found.uri, found.password) == (PLAIN, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("postgresql://ana:sesame@host/optuna", "OPTUNA_STORAGE, PGPASSWORD or ~/.pgpass"),
        ("postgresql://ana@host/optuna?password=sesame", "among its options"),
        ("postgresql://ana@host/optuna?sslpassword=sesame", "among its options"),
        (
            "postgresql://ana:ses/ame@host/optuna",
            "cannot be read as an address; in a password '/', '?', '#' are written %2F",
        ),
        ("postgresql://ana:12/sesame@host/optuna", "%2F"),
        ("postgresql://ana:12?sesame@host/optuna", "%3F"),
        ("mysql://ana:sesame@host/optuna", "names 'mysql'"),
        ("sqlite:///sesame.db", "names 'sqlite'"),
        ("host=db user=ana password=sesame", "is no address"),
        ("ana:sesame@host", "is no address"),
        ("postgresql://sesame", "names no database"),
    ],
)
def test_a_bad_address_is_refused_without_showing_it(given: str, said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        StudyConfig(study_db=given)

    assert said in str(caught.value)
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    assert "sesame" not in str(caught.value)
    assert "ses/ame" not in str(caught.value)


def test_a_bad_address_is_refused_by_its_variable_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", "mysql://ana:sesame@host/optuna")

    with pytest.raises(BadInputError, match=r"OPTUNA_STORAGE names 'mysql'.*Unset OPTUNA_STORAGE to keep"):
        StudyConfig()


@pytest.mark.parametrize("given", ["sqlite:///example.db", "redis://localhost", "postgresql://ana@host/optuna"])
def test_a_command_without_trials_takes_no_notice(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", given)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    (tmp_path / "mlflow.db").touch()

    assert find_store(tmp_path).database is None
    with pytest.raises(BadInputError, match="OPTUNA_STORAGE names"):
        find_store(tmp_path, needs="both")


def test_a_missing_driver_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(BadInputError, match=r"pip install 'psycopg\[binary\]"):
        StudyConfig(study_db="postgresql://ana@host/optuna")

    assert StudyConfig().study_db is None
