#!/bin/sh
# Which small changes to the code does no test notice? mutmut makes them and runs the tests on each; docs/development.md
# says how to read what it prints. Arguments go to mutmut: tests/mutants.sh 'multicloud.scores*'
# All modules take an hour and a half on two cores; what was done before is not done again where nothing changed.
set -eu
cd "$(dirname "$0")/.."
. deploy/venv.sh
make_venv mutation
.venv/bin/mutmut run "$@"
exec .venv/bin/mutmut results
