# shellcheck shell=sh
# Installs the package into .venv for what runs from a checkout: run_local.sh, tests/run.sh and tests/container.sh source
# this. make_venv EXTRA makes .venv and installs the package in it with the extra, unless that was done before, at this
# place, with this Python and this pyproject.toml. PYTHON names another python3.

make_venv() {
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "error: $python is not Python 3.11 or newer; install one and name it: PYTHON=python3.12 $0" >&2
        exit 1
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "error: $python lacks venv; install it: apt-get install python3-venv" >&2
        exit 1
    fi
    stamp=$(pwd && "$python" --version && cat pyproject.toml)
    if [ "$stamp" != "$(cat ".venv/$1.installed" 2>/dev/null)" ]; then
        echo "installing into .venv ..." >&2
        [ -e ".venv/place" ] && [ "$(cat .venv/place)" = "$(pwd) $("$python" --version)" ] || rm -rf .venv
        "$python" -m venv .venv
        echo "$(pwd) $("$python" --version)" >.venv/place
        if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$1]"; then
            echo "error: pip could not install what it needs; above is why. It takes packages from PyPI, or where" \
                "PIP_INDEX_URL says" >&2
            exit 1
        fi
        echo "$stamp" >".venv/$1.installed"
    fi
}
