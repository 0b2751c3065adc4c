#!/bin/sh
# What the image runs: HAProxy with a configuration for the servers in MULTICLOUD_SERVERS or, where that is not set, with
# the one that is at its usual place. HAProxy reloads either on SIGUSR2. Where MULTICLOUD_BACKENDS is set (to the name that
# the backend is to have, where the configuration is written here), multicloud-run is beside HAProxy, and HAProxy's own
# checks are the samples.
set -euf
file=/usr/local/etc/haproxy/haproxy.cfg
backends=${MULTICLOUD_BACKENDS-}
if [ -n "${MULTICLOUD_SERVERS-}" ]; then
    file=/var/lib/haproxy/haproxy.cfg
    if [ -n "$backends" ]; then
        # HAProxy's own checks see no environment.
        set -- --beside --backend "$backends" ${MULTICLOUD_PATH:+--path "$MULTICLOUD_PATH"}
    fi
    # shellcheck disable=SC2086 # a word a server
    multicloud config "$@" -- $MULTICLOUD_SERVERS >"$file"
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
