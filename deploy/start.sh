#!/bin/sh
# What the image runs: HAProxy with a configuration for the servers in MULTICLOUD_SERVERS or, where that is not set, with
# the one that is at its usual place. HAProxy reloads either on SIGUSR2. Where MULTICLOUD_BACKENDS is set (`upstream`, for
# the configuration that is written here), multicloud-run is beside HAProxy, and HAProxy's own checks are the samples.
set -euf
file=/usr/local/etc/haproxy/haproxy.cfg
if [ -n "${MULTICLOUD_SERVERS-}" ]; then
    file=/var/lib/haproxy/haproxy.cfg
    # shellcheck disable=SC2086 # a word a server
    multicloud config ${MULTICLOUD_BACKENDS:+--beside} -- $MULTICLOUD_SERVERS >"$file"
fi
if [ -n "${MULTICLOUD_BACKENDS-}" ]; then
    # Again, should it end; not with wrong settings, which do not become right by themselves. It ends with the container.
    (until multicloud-run || [ $? = 2 ]; do sleep 1; done) &
fi
# The master process reloads, and buries checks that outlive a worker.
exec haproxy -W -db -f "$file"
