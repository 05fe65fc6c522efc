#!/usr/bin/env bash
# Makes the environment of requirements.txt and requirements-dev.txt in the cache folder, once per content of
# these files and per Python, and links it as .venv. Safe to run twice at the same time and after a broken run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3.11}
cache=${MEDSA_CACHE:-$HOME/.cache/medsa}

has_python() {
    "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1
}

need_python() {
    has_python && return
    local packages="python3.11 python3.11-venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y $packages || true
    fi
    has_python && return
    echo "install: '$python' is not Python 3.11 with the module venv. On Debian or Ubuntu: sudo apt-get install $packages" >&2
    echo "install: another interpreter can be named: make install PYTHON=/path/to/python3.11" >&2
    exit 1
}

if [ -e .venv ] && [ ! -L .venv ]; then
    echo "install: .venv is there and is no link made by this script; move it away first" >&2
    exit 1
fi
need_python
key=$( { "$python" -c 'import sys; print(sys.version)'; cat requirements.txt requirements-dev.txt; } | sha256sum | cut -c1-16)
venv=$cache/venv-$key
mkdir -p "$cache"
exec 9>"$venv.lock"
flock 9
# The marker is written last: an environment without it is what an interrupted run left behind.
if [ ! -f "$venv/complete" ]; then
    rm -rf "$venv"
    echo "install: making $venv (several GB, some minutes)"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
    touch "$venv/complete"
fi
ln -sfn "$venv" .venv
