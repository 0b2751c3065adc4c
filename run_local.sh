#!/bin/sh
# Shows the router at work on this machine: simulated cloud regions, and a real HAProxy in front of them.
# Arguments go to `multicloud demo` (--duration, --port, --stats-port, --beside).
# With --docker as the only argument it builds the image instead, and runs it in place of an old container, with the
# servers in MULTICLOUD_SERVERS.
set -eu
cd "$(dirname "$0")"
if [ "${1-}" = --docker ]; then
    docker rm --force multicloud 2>/dev/null || true
    docker build --tag multicloud .
    exec docker run --rm --name multicloud --env FLY_REGION=localhost1 --env MULTICLOUD_SERVERS \
        --publish 8080:8080 --publish 9000:9000 multicloud
fi
. deploy/venv.sh
make_venv demo
exec .venv/bin/multicloud demo "$@"
