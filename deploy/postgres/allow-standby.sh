#!/bin/sh
# Lets a standby in, with the password: "all" databases do not include replication. Runs when the data volume is empty,
# and does no harm when it is run again by hand.
line="host replication $POSTGRES_USER all scram-sha-256"
grep -qxF "$line" "$PGDATA/pg_hba.conf" || echo "$line" >>"$PGDATA/pg_hba.conf"
psql --no-psqlrc -U "$POSTGRES_USER" -d postgres -qAtc "SELECT pg_reload_conf()" >/dev/null
