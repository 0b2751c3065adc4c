#!/bin/sh
# What a newcomer meets: makes machines with nothing but git and python3-venv, and runs ./run_local.sh and ./tests/run.sh
# of the last commit in them as an ordinary user. Arguments are Debian's releases (bookworm and trixie, where there are
# none). Needs root on Debian, 2 GB in TMPDIR and ten minutes a release: apt-get install debootstrap
# DEBIAN_MIRROR names a mirror, where the default of debootstrap cannot be reached.
set -eu
cd "$(dirname "$0")/.."

for tool in debootstrap git; do
    command -v "$tool" >/dev/null && continue
    echo "error: $tool is missing; install it: apt-get install debootstrap git" >&2
    exit 2
done
[ "$(id -u)" = 0 ] || { echo "error: must be run as root" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT TERM

# Whatever is mounted and started is so in namespaces, and goes with them.
make_machine() {
    unshare --mount debootstrap --variant=minbase --include=ca-certificates,git,python3-venv \
        "$1" "$2" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
    printf '127.0.0.1 localhost\n::1 localhost\n' >"$2/etc/hosts"
    # How this machine reaches its network is how that one does.
    cp /etc/resolv.conf "$2/etc/resolv.conf"
    cp /etc/ssl/certs/ca-certificates.crt "$2/etc/ssl/certs/ca-certificates.crt"
    env | grep -iE '^(pip_[a-z_]+|[a-z]+_proxy)=' >"$2/etc/environment" || true
    [ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$2/etc/pip.conf"
    chroot "$2" useradd --create-home --shell /bin/bash newcomer
    git bundle create --quiet "$2/home/newcomer/multicloud.bundle" HEAD
}

as_newcomer() {
    unshare --mount --pid --fork --kill-child sh -eu -c '
        mount --rbind /dev "$1/dev"
        mount -t tmpfs tmpfs "$1/dev/shm"
        mount -t tmpfs tmpfs "$1/tmp"
        mount -t proc proc "$1/proc"
        exec chroot "$1" su --login newcomer --command "$2"' sh "$1" "set -eu; $2"
}

# Other ports than the defaults: the network is this machine's, where somebody may show the demo.
run_local='
git clone --quiet multicloud.bundle multicloud
cd multicloud
./run_local.sh --duration 15 --port 28080 --stats-port 29000 &
demo=$!
until python3 -c "
import urllib.request
assert urllib.request.urlopen(\"http://localhost:28080/\", timeout=5).headers[\"upstream\"].endswith(\".demo\")
" 2>/dev/null; do
    kill -0 $demo
    sleep 0.2
done
wait $demo'

[ "$#" -gt 0 ] || set -- bookworm trixie
for release; do
    log=$work/$release.log
    step() {
        echo "== $release: $1"
        shift
        "$@" >"$log" 2>&1 || { tail -n 60 "$log" >&2; echo "$release: failed" >&2; exit 1; }
    }
    step "the machine" make_machine "$release" "$work/$release"
    step "./run_local.sh" as_newcomer "$work/$release" "$run_local"
    step "./tests/run.sh" as_newcomer "$work/$release" 'cd multicloud; ./tests/run.sh'
    echo "$release: run_local.sh served, tests/run.sh: $(tail -n 1 "$log" | tr -d =)"
    rm -rf --one-file-system "$work/${release:?}"
done
