#!/bin/sh
# The 90th percentile of each server of the file $1, by nearest rank, with sort and awk.
export LC_ALL=C
exec sort -k1,2 -k3,3n "$1" | awk '
    function flush() { if (n) { i = int(n * 0.9); if (i < n * 0.9) i++; print name, value[i] } }
    { if ($1 " " $2 != name) { flush(); name = $1 " " $2; n = 0 } value[++n] = $3 }
    END { flush() }'
