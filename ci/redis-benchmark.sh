#!/usr/bin/env bash
# redis-benchmark runs clean against a primary: no error reply, no warning, all five tests.
# BENCHMARK_REQUESTS (100000) per test.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=ci/lib.sh
source ci/lib.sh
lib_begin redis-benchmark

start_node a
address="$(address_of a)"
output="$lib_directory/output"
# It ends by itself at the first error reply; progress lines end in a carriage return.
timeout 300 redis-benchmark -h "${address%:*}" -p "${address##*:}" -q -P 16 \
    -n "${BENCHMARK_REQUESTS:-100000}" -t set,get,hset,incr,mset 2>&1 \
    | tr '\r' '\n' > "$output" || { cat "$output"; lib_fail "redis-benchmark failed"; }

grep 'requests per second' "$output" || true
if grep --ignore-case --extended-regexp 'error|warning|could not|refused' "$output" >&2; then
    lib_fail "redis-benchmark reported errors"
fi
for test in SET GET INCR HSET MSET; do
    grep --quiet "^$test.*requests per second" "$output" || lib_fail "no result for $test"
done
stop_node a
"$ROWSHIP" log verify "$lib_directory/a"
