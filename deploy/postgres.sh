#!/bin/sh
# A PostgreSQL server in the foreground; the database cluster is created if there is none. If you already have a server,
# you need only databases.sh.
#
#   PGDATA=/srv/postgres LISTEN=10.0.0.5 deploy/postgres.sh
#
# PGDATA  folder of the cluster; as root it belongs to the account `postgres`, which the server then runs as
# LISTEN  address to listen at, 127.0.0.1 by default; ALLOW the network that may log in there, LISTEN/32 by default
# PGPORT  5432 by default; further arguments go to the server: deploy/postgres.sh -c shared_buffers=1GB
#
# Over the network a password is always required (scram-sha-256). The superuser has none and can connect only on this
# machine, through the socket in PGDATA. Health check: pg_isready -h LISTEN -p PGPORT
set -eu
: "${PGDATA:?name the folder of the cluster}"
listen=${LISTEN:-127.0.0.1}
allow=${ALLOW:-$listen/32}
port=${PGPORT:-5432}

# Debian installs several versions side by side; without PGBIN the newest one is used.
bin=${PGBIN:-$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)}
if [ ! -x "$bin/postgres" ]; then
    echo "There is no PostgreSQL in ${bin:-/usr/lib/postgresql}. Expected Debian's package postgresql, or PGBIN." >&2
    exit 1
fi

as_owner() { "$@"; }
cluster=$PGDATA
if [ "$(id -u)" -eq 0 ]; then
    as_owner() { runuser -u postgres -- "$@"; }
    install -d -o postgres -g postgres -m 700 "$cluster"
fi
# The working directory may be closed to the server's account.
cd /

if [ ! -e "$cluster/PG_VERSION" ]; then
    as_owner "$bin/initdb" --pgdata="$cluster" --encoding=UTF8 --locale=C.UTF-8 --data-checksums \
        --auth-local=peer --auth-host=scram-sha-256 >/dev/null
fi
# The machine itself may log in anyway.
rule="host all all $allow scram-sha-256"
if [ "$allow" != 127.0.0.1/32 ] && ! as_owner grep -qxF "$rule" "$cluster/pg_hba.conf"; then
    echo "$rule" | as_owner tee -a "$cluster/pg_hba.conf" >/dev/null
fi

# exec: a signal to this process reaches the server. runuser would pass it on only after its child has ended.
set -- "$bin/postgres" -D "$cluster" -p "$port" \
    -c listen_addresses="$listen" -c unix_socket_directories="$cluster" "$@"
if [ "$(id -u)" -eq 0 ]; then
    exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$@"
fi
exec "$@"
