#!/bin/sh
# Builds multicloud_VERSION_all.deb of this checkout, for Debian 12 and newer: deploy/debian/build.sh [DIRECTORY]
# It goes into the directory, or this one. Needs no root, but on Debian 12 or newer:
#   apt-get install --no-install-recommends debhelper dh-python dpkg-dev python3-click
set -eu
directory=$(realpath "${1:-.}")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

mkdir "$work/multicloud"
cp -R multicloud haproxy.cfg CHANGELOG.md deploy/debian "$work/multicloud"
cp deploy/multicloud.service "$work/multicloud/debian"
cd "$work/multicloud"
dpkg-checkbuilddeps -I
dpkg-buildpackage --build=binary --no-check-builddeps --unsigned-changes
mv "$work"/*.deb "$directory"
