#!/bin/sh
# Random secrets for overlays/development, made once: PostgreSQL keeps the password that its volume was made with.
set -eu
namespace=auralink-development
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
secret() { kubectl --namespace "$namespace" create secret generic "$1" --from-env-file=/dev/stdin; }

here=$(dirname "$0")
kubectl apply -f "$here/overlays/development/namespace.yaml"
if kubectl --namespace "$namespace" get secret servers >/dev/null 2>&1; then
    echo "the secrets are there already" >&2
    exit 0
fi
postgres=$(random) redis=$(random)
common="JWT_SECRET=$(random)
ADMIN_TOKEN=$(random)
REDIS_URL=redis://:$redis@redis:6379/0"
database() { echo "DATABASE_URL=postgresql://auralink:$postgres@postgres:5432/$1"; }

printf '%s\n' "$common" "$(database dashboard)" | secret dashboard
printf '%s\n' "$common" "$(database webrtc)" | secret webrtc
printf '%s\n' "$common" "$(database ai_core)" OPENAI_API_KEY=simulated ANTHROPIC_API_KEY=simulated \
    ELEVENLABS_API_KEY=simulated | secret ai-core
# Last: it is what tells that all are there.
printf '%s\n' "POSTGRES_PASSWORD=$postgres" "REDIS_PASSWORD=$redis" | secret servers
