#!/bin/sh
# What the image runs: HAProxy with a configuration that is written for the servers in MULTICLOUD_SERVERS or, without that,
# the one that is mounted at its usual place or, without one, for `servers` in a mounted /etc/multicloud.conf. HAProxy
# reloads it on SIGUSR2. Where the settings name `backends`, multicloud-run is beside HAProxy, and HAProxy's own checks are
# the samples; servers in MULTICLOUD_SERVERS are then of the backend of that name.
set -euf
file=/usr/local/etc/haproxy/haproxy.cfg
conf=${MULTICLOUD_CONF:-/etc/multicloud.conf}
backends=${MULTICLOUD_BACKENDS-}
if [ -z "$backends" ] && [ -e "$conf" ]; then
    backends=$(sed -n 's/^[[:blank:]]*backends[[:blank:]]*=[[:blank:]]*\([^[:blank:]#]*\).*/\1/p' "$conf")
fi
if [ -n "${MULTICLOUD_SERVERS-}" ] || [ ! -e "$file" ]; then
    file=/var/lib/haproxy/haproxy.cfg
    [ -z "$backends" ] || set -- --beside ${MULTICLOUD_SERVERS:+--backend "$backends"}
    multicloud config "$@" >"$file"
fi
# Before each external check HAProxy closes every number of a file descriptor up to its limit, of which there may be a
# billion. It raises the limit by itself as far as its `maxconn` needs.
ulimit -S -n 1024
if [ -z "$backends" ]; then
    # The master process reloads, and buries checks that outlive a worker.
    exec haproxy -W -db -f "$file"
fi

# Again, should it end; not with wrong settings, which do not become right by themselves. It ends with the container.
until multicloud-run || [ $? = 2 ]; do sleep 1; done &

# HAProxy is a child of this shell, which hands signals on to it: as the parent of the loop, it would wait for that, too,
# before it ends.
haproxy -W -db -f "$file" &
haproxy=$!
for signal in TERM INT USR1 USR2 HUP; do
    # shellcheck disable=SC2064 # the number is known now
    trap "kill -s $signal $haproxy" "$signal"
done
while :; do
    wait "$haproxy" && status=0 || status=$?
    kill -0 "$haproxy" 2>/dev/null || exit "$status" # else it was a signal that ended the wait
done
