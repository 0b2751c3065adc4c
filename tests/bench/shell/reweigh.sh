#!/bin/sh
# A reweigh in shell: sort and awk rank the servers of the file TIMES, nc sends the weights to the socket SOCKET.
set -eu
tail -n 500 "$TIMES" >"$TIMES.tail"
"$(dirname "$0")/scores.sh" "$TIMES.tail" | sort -k3,3n |
    awk '{ print "set server " $1 "/" $2 " weight " (NR == 1 ? 256 : NR == 2 ? 1 : 0) }' |
    tr '\n' ';' | { cat; echo; } | nc -N -U "$SOCKET" >/dev/null
