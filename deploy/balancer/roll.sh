#!/bin/sh
# Renews the two Dashboards one after the other, without a failed request:  deploy/balancer/roll.sh [--build]
# The balancer sends nothing more to an instance before that is stopped. By its stop alone the balancer would learn of it
# too late for a write that is just arriving, and cannot know whether it may send that again.
set -eu

tell() {
    docker compose exec -T balancer bash -c "exec 3<>/dev/tcp/127.0.0.1/9999 && echo '$1' >&3 && cat <&3"
}

for one in dashboard-1 dashboard-2; do
    for backend in dashboards dashboards-grpc; do tell "set server $backend/$one state drain"; done
    sleep 1 # what was sent before has arrived; the instance itself finishes it
    docker compose up --no-deps --force-recreate --detach --wait "$@" "$one"
    for backend in dashboards dashboards-grpc; do tell "set server $backend/$one state ready"; done
    tries=100
    until tell "show servers state dashboards" | awk -v one="$one" '$4 == one { up = $6 == 2 } END { exit !up }'; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || { echo "the balancer does not find $one healthy; the other one serves" >&2 && exit 1; }
        sleep 0.2
    done
done
