# shellcheck shell=sh
# Sourced by run_local.sh and tests/run.sh: make_venv EXTRA makes .venv and installs the package in it with the extra,
# unless that was done before and pyproject.toml is still the same.

make_venv() {
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "error: python3 must be 3.11 or newer; install it: apt-get install python3 python3-venv" >&2
        exit 1
    fi
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        echo "error: python3 lacks venv; install it: apt-get install python3-venv" >&2
        exit 1
    fi
    if ! cmp -s pyproject.toml ".venv/$1.installed"; then
        echo "installing into .venv ..." >&2
        python3 -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
        cp pyproject.toml ".venv/$1.installed"
    fi
}
