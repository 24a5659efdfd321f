#!/usr/bin/env bash
# redis-py drives a primary and its replica: ci/redis_py_check.py.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=ci/lib.sh
source ci/lib.sh
lib_begin redis-py

venv="${CARGO_TARGET_DIR:-target}/redis-py"
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
fi
if ! "$venv/bin/python" -c 'import redis' 2> /dev/null; then
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'redis>=5,<8'
fi

start_node a
start_node b --replica-of "$(address_of a replication_listen)"
timeout 300 "$venv/bin/python" ci/redis_py_check.py "$(address_of a)" "$(address_of b)"
"$ROWSHIP" diff "$(address_of a)" "$(address_of b)"
stop_node b
stop_node a
