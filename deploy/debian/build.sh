#!/bin/sh
# Builds multicloud_VERSION_all.deb of this checkout, for Debian 12 and newer: deploy/debian/build.sh [DIRECTORY]
# It goes into the directory, or this one, and takes the place of an older one there. Needs no root, but on Debian 12 or
# newer, on this machine or another one (debhelper brings some 300 MB):
#   apt-get install --no-install-recommends debhelper dh-python dpkg-dev python3-click
set -eu
directory=$(realpath "${1:-.}")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

mkdir "$work/multicloud"
cp -R multicloud docs haproxy.cfg README.md CHANGELOG.md deploy "$work/multicloud"
mv "$work/multicloud/deploy/debian" "$work/multicloud"
cp deploy/multicloud.service "$work/multicloud/debian"
version=$(python3 deploy/version.py)
case $version in *~dev0) echo "no git clone: apt will take any other such build for this one" >&2 ;; esac
cd "$work/multicloud"
sed -i "1s/(.*)/($version)/" debian/changelog
dpkg-checkbuilddeps -I
dpkg-buildpackage --build=binary --no-check-builddeps --unsigned-changes
rm -f "$directory"/multicloud_*_all.deb
mv "$work"/*.deb "$directory"
