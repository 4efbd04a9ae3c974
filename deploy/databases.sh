#!/bin/sh
# Creates the roles and databases of a team's studies on a running PostgreSQL server; called again, it sets the passwords.
#
#   PGHOST=/srv/postgres OPTUNA_DB_PASSWORD=... MLFLOW_DB_PASSWORD=... deploy/databases.sh
#
# Run it as the superuser: on the server's machine, with PGHOST the folder of its socket (for postgres.sh: PGDATA; for
# Debian's own cluster: /var/run/postgresql). PGPORT is 5432 by default.
#
# optuna  the trial storage: role and database of the coordinators
# mlflow  runs and registry, and mlflow_auth its accounts: role and databases of the MLflow server
#
# The passwords come from the environment, so that the list of processes never shows them.
set -eu
: "${OPTUNA_DB_PASSWORD:?set the password of the role optuna}"
: "${MLFLOW_DB_PASSWORD:?set the password of the role mlflow}"
export OPTUNA_DB_PASSWORD MLFLOW_DB_PASSWORD

as_superuser() { "$@"; }
if [ "$(id -u)" -eq 0 ]; then
    as_superuser() { runuser -u postgres -- "$@"; }
fi
cd /

as_superuser psql --no-psqlrc --quiet --no-password --dbname=postgres --set=ON_ERROR_STOP=1 <<'SQL'
-- A statement that fails would be written into the server's log, and its password with it.
SET log_min_error_statement = panic;
SET log_statement = none;
SET log_min_duration_statement = -1;
\getenv optuna_password OPTUNA_DB_PASSWORD
\getenv mlflow_password MLFLOW_DB_PASSWORD
SELECT format('CREATE ROLE %I LOGIN', name) FROM unnest(ARRAY['optuna', 'mlflow']) AS name
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
ALTER ROLE optuna PASSWORD :'optuna_password';
ALTER ROLE mlflow PASSWORD :'mlflow_password';
SELECT format('CREATE DATABASE %I OWNER %I', name, split_part(name, '_', 1))
    FROM unnest(ARRAY['optuna', 'mlflow', 'mlflow_auth']) AS name
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec
REVOKE CONNECT ON DATABASE optuna, mlflow, mlflow_auth FROM PUBLIC;
SQL
