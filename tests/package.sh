#!/bin/sh
# Builds the Debian package on Debian 12 and 13, as a user who is not root, has lintian look at it, and tries what was
# built on the one in a machine of the other that has nothing else: one package is for both. Then it boots such a machine
# and tries the unit. Needs root on Debian, 3 GB in TMPDIR and some minutes. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
. deploy/venv.sh
make_venv test

. tests/machine.sh
in_work "debootstrap systemd-container" debootstrap systemd-nspawn

# In a layer over the machine, which stays as it is.
build() {
    mkdir -p "$work/$release.over" "$work/$release.work" "$work/$release.built"
    unshare --mount sh -eu -c '
        mount -t overlay overlay -o "lowerdir=$1,upperdir=$1.over,workdir=$1.work" "$1"
        mount -t proc proc "$1/proc"
        mkdir "$1/checkout" "$1/built"
        mount -o bind,ro . "$1/checkout"
        chroot "$1" sh -eu
        cp "$1"/built/*.deb "$1.built/multicloud.deb"' sh "$work/$release" <<'SCRIPT'
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends debhelper dh-python dpkg-dev python3-click lintian
chown nobody /built
su nobody -s /bin/sh -c '/checkout/deploy/debian/build.sh /built'
lintian --fail-on error /built/*.deb
SCRIPT
}

for release in bookworm trixie; do
    step "$release: a machine" make_root "$work/$release" "$release" ca-certificates,procps,systemd-sysv
    step "$release: the package" build
    grep '^[EW]: multicloud' "$work/done" || true
done
try() {
    echo "== $1: the package that was built on $2"
    export MACHINE_ROOT="$work/$1" PACKAGE="$work/$2.built/multicloud.deb"
    shift 2
    .venv/bin/pytest tests/package.py tests/service.py "$@"
}
try bookworm trixie "$@"
try trixie bookworm "$@"
