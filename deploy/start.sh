#!/bin/sh
# What the image runs: HAProxy with a configuration for the servers in MULTICLOUD_SERVERS or, where that is not set, with
# the one that is at its usual place. HAProxy reloads either on SIGUSR2.
set -euf
file=/usr/local/etc/haproxy/haproxy.cfg
if [ -n "${MULTICLOUD_SERVERS-}" ]; then
    file=/var/lib/haproxy/haproxy.cfg
    # shellcheck disable=SC2086 # a word a server
    multicloud config -- $MULTICLOUD_SERVERS >"$file"
fi
# The master process reloads, and buries checks that outlive a worker.
exec haproxy -W -db -f "$file"
