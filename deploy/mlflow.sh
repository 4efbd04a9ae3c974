#!/bin/sh
# An MLflow server in the foreground: runs, registry and accounts on PostgreSQL, proxied artifacts, and a log-in for every
# request to them.
#
#   MLFLOW_DATA=/srv/mlflow PGHOST=10.0.0.5 PGPASSWORD=... MLFLOW_AUTH_ADMIN_PASSWORD=... deploy/mlflow.sh
#
# MLFLOW_DATA    folder of this server's own: its settings, its secret key, and the artifacts unless
#                MLFLOW_ARTIFACTS_DESTINATION names another place (s3://...)
# PGHOST PGPORT  the PostgreSQL server with what databases.sh makes; PGPASSWORD or ~/.pgpass has the password of `mlflow`
# MLFLOW_AUTH_ADMIN_PASSWORD  of the account `admin`, 12 characters or more; needed at the first start only
# LISTEN PORT    127.0.0.1 and 5000 by default
# ALLOWED_HOSTS  names that clients call it by, LISTEN:PORT and localhost:PORT by default; all others are refused
# WORKERS        processes, 2 by default; each keeps a few connections to PostgreSQL
# PYTHON         the Python that has the extra `server` installed, python3 by default
#
# It speaks HTTP: put a proxy that speaks HTTPS before it unless its network is trusted.
# Health check: curl --fail http://LISTEN:PORT/health
set -eu
: "${MLFLOW_DATA:?name a folder}"
: "${PGHOST:?name the PostgreSQL server}"
export PGHOST PGPORT="${PGPORT:-5432}"
listen=${LISTEN:-127.0.0.1}
port=${PORT:-5000}
python=${PYTHON:-python3}
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/${python##*/} ;; esac
umask 077
mkdir -p "$MLFLOW_DATA"
cd "$MLFLOW_DATA"

# Any account may read and write every experiment and model; only its creator or `admin` can delete one.
# A password is looked up once a minute, not with every request: the look-up takes longer than the rest of the request.
# Until then an old password may still be accepted.
cat >basic_auth.ini <<INI
[mlflow]
default_permission = EDIT
database_uri = postgresql+psycopg://mlflow@/mlflow_auth
admin_username = admin
auth_cache_ttl_seconds = 60
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
[ -s secret_key ] || od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >secret_key
MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat secret_key)

export MLFLOW_FLASK_SERVER_SECRET_KEY
export MLFLOW_AUTH_CONFIG_PATH="$PWD/basic_auth.ini"
# Not on the command line, though it has no password: other users need not see the address.
export MLFLOW_BACKEND_STORE_URI=postgresql+psycopg://mlflow@/mlflow
# Without these MLflow's server runs jobs, unpickles what is uploaded, calls language models and sends usage statistics.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false
export MLFLOW_ENABLE_AI_GATEWAY=false
export MLFLOW_DISABLE_TELEMETRY=true
# Of its own accord each process keeps up to 15 connections for each of its stores.
export MLFLOW_SQLALCHEMYSTORE_POOL_SIZE="${MLFLOW_SQLALCHEMYSTORE_POOL_SIZE:-4}"
export MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW="${MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW:-4}"

exec "$python" -m mlflow server --app-name basic-auth \
    --host "$listen" --port "$port" --workers "${WORKERS:-2}" \
    --allowed-hosts "${ALLOWED_HOSTS:-$listen:$port,localhost:$port}" \
    --cors-allowed-origins "${CORS_ALLOWED_ORIGINS:-http://$listen:$port}" \
    --serve-artifacts --artifacts-destination "${MLFLOW_ARTIFACTS_DESTINATION:-$PWD/artifacts}"
