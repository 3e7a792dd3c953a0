#!/bin/sh
# The standby's container: a copy of the primary ($PGHOST, $PGPORT), made when there is none or when it cannot follow,
# then the server itself. An existing copy starts and answers reads also while the primary is away.
# Arguments are passed on to the server.
set -eu

data=${STANDBY_DATA:-/var/lib/postgresql/standby}
slot=standby
# In a file that only this user can read: on a command line everybody could.
PGPASSFILE=$(umask 077 && mktemp)
export PGPASSFILE
printf '*:*:*:%s:%s\n' "$PGUSER" "$POSTGRES_PASSWORD" >"$PGPASSFILE"
unset POSTGRES_PASSWORD
primary="host=$PGHOST port=${PGPORT:-5432} user=$PGUSER passfile=$PGPASSFILE application_name=standby connect_timeout=3"

ask() {
    psql --no-psqlrc -qAt -d "$primary dbname=postgres" -c "$1"
}

can_follow() {
    [ -f "$data/PG_VERSION" ] || return 1
    ours=$(LC_ALL=C pg_controldata "$data" | sed -n 's/^Database system identifier: *//p')
    kept="SELECT 1 FROM pg_replication_slots WHERE slot_name = '$slot' AND wal_status <> 'lost'"
    [ "$(ask "SELECT system_identifier FROM pg_control_system() WHERE EXISTS ($kept)")" = "$ours" ]
}

copy() {
    rm -rf "$data" "$data.draft"
    ask "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '$slot'"
    pg_basebackup -D "$data.draft" --checkpoint=fast --wal-method=stream --create-slot --slot="$slot" -d "$primary"
    touch "$data.draft/standby.signal"
    mv "$data.draft" "$data" # it gets its name last: a half-made copy is never used
}

tries=60
until ask "SELECT 1" >/dev/null 2>&1; do
    tries=$((tries - 1))
    if [ -f "$data/PG_VERSION" ]; then
        break
    elif [ "$tries" -eq 0 ]; then
        echo "standby: no primary at $PGHOST to make a copy of" >&2
        exit 1
    fi
    sleep 1
done
if ask "SELECT 1" >/dev/null 2>&1 && ! can_follow; then
    copy
fi
exec postgres -D "$data" -c listen_addresses='*' -c hot_standby=on -c max_connections=200 \
    -c primary_conninfo="$primary" -c primary_slot_name="$slot" -c wal_retrieve_retry_interval=1s "$@"
