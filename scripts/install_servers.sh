#!/bin/sh
# Install the servers that tests/remote uses, where this may be done; tests skip what is missing.
set -u
missing=""
command -v nginx >/dev/null 2>&1 || [ -x /usr/sbin/nginx ] || missing="$missing nginx-light"
command -v docker-registry >/dev/null 2>&1 || missing="$missing docker-registry"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed, so that some tests are skipped:$missing"
    exit 0
fi
# shellcheck disable=SC2086 # several words are meant
apt-get install -y -q --no-install-recommends $missing >/dev/null 2>&1 ||
    { apt-get update -q >/dev/null 2>&1; apt-get install -y -q --no-install-recommends $missing >/dev/null 2>&1; } ||
    echo "could not be installed, so that some tests are skipped:$missing"
