#!/bin/sh
# Install programs of Debian that tests use, where this may be done; tests skip what is missing.
# Each argument is a program, or PROGRAM=PACKAGE.
set -u
missing=""
for each in "$@"; do
    program=${each%%=*}
    command -v "$program" >/dev/null 2>&1 || [ -x "/usr/sbin/$program" ] || missing="$missing ${each#*=}"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed, so that some tests are skipped:$missing"
    exit 0
fi
# shellcheck disable=SC2086 # several words are meant
apt-get install -y -q --no-install-recommends $missing >/dev/null 2>&1 ||
    { apt-get update -q >/dev/null 2>&1; apt-get install -y -q --no-install-recommends $missing >/dev/null 2>&1; } ||
    echo "could not be installed, so that some tests are skipped:$missing"
