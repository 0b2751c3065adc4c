#!/bin/sh
# What a newcomer meets: makes machines that have git and python3-venv and nothing else, and runs ./run_local.sh and
# ./tests/run.sh of the last commit in them, as an ordinary user. Arguments are Debian's releases; without any, they are
# bookworm and trixie. Needs root on Debian, 2 GB in TMPDIR and some minutes.
set -eu
cd "$(dirname "$0")/.."
[ "$#" -gt 0 ] || set -- bookworm trixie

. tests/machine.sh
in_work "debootstrap git" debootstrap git
root=$work/root

# Whatever these mount or start is in namespaces, and goes with them.
make_machine() {
    make_root "$root" "$release" ca-certificates,git,python3-venv
    # How pip reaches its packages on this machine is how it does on that one.
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    env | grep -iE '^(pip_[a-z_]+|[a-z]+_proxy)=' >"$root/etc/environment" || true
    if [ -e /etc/pip.conf ]; then cp /etc/pip.conf "$root/etc/pip.conf"; fi
    printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
    chroot "$root" useradd --create-home --shell /bin/bash newcomer
    git bundle create --quiet "$root/home/newcomer/multicloud.bundle" HEAD
    as_newcomer 'git -c advice.detachedHead=false clone multicloud.bundle multicloud'
}

as_newcomer() {
    unshare --mount --pid --fork --kill-child sh -eu -c '
        mount --rbind /dev "$1/dev"
        mount -t tmpfs tmpfs "$1/dev/shm"
        mount -t tmpfs tmpfs "$1/tmp"
        mount -t proc proc "$1/proc"
        exec chroot "$1" su --login newcomer --command "$2"' sh "$root" "set -eu; $1"
}

# At other ports than usual: the network is this machine's, where somebody may show the demo.
see_it='
cd multicloud
./run_local.sh --duration 15 --port 28080 --stats-port 29000 &
until python3 -c "
import urllib.request
assert urllib.request.urlopen(\"http://localhost:28080/\", timeout=5).headers[\"upstream\"].endswith(\".demo\")" 2>/dev/null
do
    kill -0 $!
    sleep 0.2
done
wait $!'

for release; do
    step "$release: the machine" make_machine
    step "$release: ./run_local.sh" as_newcomer "$see_it"
    step "$release: ./tests/run.sh" as_newcomer 'cd multicloud; ./tests/run.sh'
    echo "$release: run_local.sh served, tests/run.sh: $(sed -n '$s/^=* \(.*\) in .*/\1/p' "$work/done")"
    rm -rf --one-file-system "$root"
done
