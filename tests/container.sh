#!/bin/sh
# Builds the image from the Dockerfile and tests what is in it, without a Docker daemon and without pulling anything:
# the base that the Dockerfile names is stood in for by Debian's own HAProxy. Needs root on Debian, 3 GB in TMPDIR and
# some minutes. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
. deploy/venv.sh
make_venv test

. tests/machine.sh
in_work "buildah debootstrap iproute2" buildah debootstrap ip
images() { buildah --root "$work/images" --runroot "$work/run" --storage-driver vfs "$@"; }
trap 'images umount --all >/dev/null || true; clean_up' EXIT

base=$(sed -n 's/^FROM \([^ ]*:[^ ]*\).*/\1/p' Dockerfile | sort --unique)
container=$(images from scratch)
root=$(images mount "$container")
step "$base, made of Debian's packages" make_root "$root" trixie ca-certificates
# The user and the places are the official image's, and no service is to start now.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
step "its HAProxy" chroot "$root" sh -eu <<'SCRIPT'
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends haproxy
groupmod --gid 99 haproxy
usermod --uid 99 haproxy
chown haproxy:haproxy /var/lib/haproxy
mkdir -p /usr/local/etc/haproxy
apt-get clean
rm -rf /usr/sbin/policy-rc.d /var/lib/apt/lists/* /usr/share/man /usr/share/locale
find /usr/share/doc -type f ! -name copyright -delete
SCRIPT
images config --user haproxy --workingdir /var/lib/haproxy --stop-signal SIGUSR1 \
    --entrypoint '["docker-entrypoint.sh"]' --cmd '["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]' \
    --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
images commit --quiet --format docker --rm "$container" "$base" >/dev/null

step "the image, built from the Dockerfile" \
    images build --isolation chroot --format docker --pull-never --quiet --tag multicloud .

echo "== its tests"
images push --quiet multicloud "oci:$work/layers:multicloud" >/dev/null
container=$(images from --pull-never multicloud)
images inspect --type image multicloud >"$work/config.json"
IMAGE_ROOT=$(images mount "$container") IMAGE_CONFIG=$work/config.json IMAGE_LAYERS=$work/layers \
    unshare --net sh -eu -c 'ip link set lo up; exec .venv/bin/pytest --capture=no tests/container.py "$@"' sh "$@"
