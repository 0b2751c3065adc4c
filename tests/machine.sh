# shellcheck shell=sh
# For tests that need machines of their own: tests/bare.sh, tests/container.sh and tests/package.sh source this. They need
# root on Debian; DEBIAN_MIRROR names a mirror, where the default of debootstrap cannot be reached.
# The directory $work is theirs, and goes when they end; with an error, the output of the step that failed is shown.

# in_work "PACKAGES" TOOL ...: makes $work, if the tools are there, which these Debian packages have.
in_work() {
    packages=$1
    shift
    for tool; do
        command -v "$tool" >/dev/null && continue
        echo "error: $tool is missing; install it: apt-get install $packages" >&2
        exit 2
    done
    [ "$(id -u)" = 0 ] || { echo "error: must be run as root" >&2; exit 2; }
    work=$(mktemp -d)
    trap clean_up EXIT
    trap 'exit 130' INT TERM
}

clean_up() {
    [ ! -e "$work/log" ] || tail -n 60 "$work/log" >&2
    rm -rf --one-file-system "$work"
}

# step WHAT COMMAND ...: its output is in $work/log while it runs, and in $work/done afterwards.
step() {
    echo "== $1"
    shift
    ("$@") >"$work/log" 2>&1
    mv "$work/log" "$work/done"
}

# make_root ROOT RELEASE PACKAGE,...: a small Debian, which reaches its networks and its mirrors as this machine does.
make_root() {
    unshare --mount debootstrap --variant=minbase --include="$3" "$2" "$1" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
    cp /etc/resolv.conf "$1/etc/resolv.conf"
    apt-config dump | grep -E '^Acquire::(https?|Check|Retries)' >"$1/etc/apt/apt.conf.d/99-of-this-machine" || true
}
