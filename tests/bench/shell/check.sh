#!/bin/sh
# A check in shell: curl asks the server that HAProxy names, and the time to the first byte goes to a file.
# SCHEME is http, https or tcp (for which the time to the connection counts), BUNDLE the certificates, TIMES the file.
set -eu
case "${SCHEME:?}" in
tcp) scheme=http format='%{time_connect}' ;;
*) scheme=$SCHEME format='%{time_starttransfer}' ;;
esac
seconds=$(curl --silent --fail --output /dev/null --max-time 10 --cacert "$BUNDLE" \
    --resolve "$HAPROXY_SERVER_NAME:$4:$3" --write-out "$format" "$scheme://$HAPROXY_SERVER_NAME:$4/")
echo "$HAPROXY_PROXY_NAME $HAPROXY_SERVER_NAME $seconds" >>"$TIMES"
