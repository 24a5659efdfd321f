#!/usr/bin/env bash
# The table of goals, from nothing: builds, runs every scenario, ours and the peers', and prints
# for each goal the figure, its ratio, and whether it is met; the report page comes with it.
# Figures of an earlier run are moved aside, so that all of a table are of one run. A scenario that
# fails leaves its goals not measured, the others go on, and the script ends with 1.
#
# BENCH_ROUNDS (3), BENCH_SECONDS (4) of each measurement, BENCH_OUT (target/bench),
# BENCH_SOAK_SECONDS (1800, 0 for none). BENCH_STRICT=1: an error unless all goals are met.
# BENCH_PEERS_ARGS: further arguments of the scenario `peers`; BENCH_PEERS=0 leaves it out.
# BENCH_TINY=1: the shortest run that touches everything; its figures mean nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

out="${BENCH_OUT:-${CARGO_TARGET_DIR:-target}/bench}"
common=(--rounds "${BENCH_ROUNDS:-3}" --seconds "${BENCH_SECONDS:-4}" --out "$out")
soak_seconds="${BENCH_SOAK_SECONDS:-1800}"
ship=() catchup=() lag=() fanout=() growth=() recovery=() footprint=() peers=()
if [ "${BENCH_TINY:-0}" = 1 ]; then
    common=(--rounds 1 --seconds 0.3 --keys 1000 --out "$out")
    # As small as they may be: nodes fill segments with zeroes before they serve.
    small=(--node-flag=--segment-bytes=64MiB)
    soak_seconds="${BENCH_SOAK_SECONDS:-0}"
    ship=("${small[@]}" --megabytes 20 --replicas 1)
    catchup=("${small[@]}" --rows 5000)
    lag=("${small[@]}" --rates 1000,5000 --pause-ms 100)
    fanout=("${small[@]}" --replicas 1,2)
    growth=("${small[@]}" --rows 40000,80000)
    recovery=("${small[@]}" --megabytes 4 --times-keys 1)
    footprint=("${small[@]}" --rows 5000)
    peers=(--rows 2000 --rate 1000)
fi

cargo build --release --locked --package rowship --package bench
bench="${CARGO_TARGET_DIR:-target}/release/bench"

if [ -e "$out" ]; then
    old="$out.$(date -u +%Y%m%dT%H%M%S)"
    mv "$out" "$old"
    echo "bench: figures of before are in $old"
fi

failed=()
# step NAME COMMAND...
step() {
    local name="$1"
    shift
    echo "bench: $name"
    "$@" || failed+=("$name")
}

step limits "$bench" limits "${common[@]}"
step ingest "$bench" ingest "${common[@]}"
step ship "$bench" ship "${common[@]}" "${ship[@]}"
step catchup "$bench" catchup "${common[@]}" "${catchup[@]}"
step lag "$bench" lag "${common[@]}" "${lag[@]}"
step fanout "$bench" fanout "${common[@]}" "${fanout[@]}"
step growth "$bench" growth "${common[@]}" "${growth[@]}"
step recovery "$bench" recovery "${common[@]}" "${recovery[@]}"
step footprint "$bench" footprint "${common[@]}" "${footprint[@]}"
if [ "${BENCH_PEERS:-1}" != 0 ]; then
    # Unquoted: these are several words.
    # shellcheck disable=SC2086
    step peers ci/peers.sh "${common[@]}" "${peers[@]}" ${BENCH_PEERS_ARGS:-}
fi
if [ "$soak_seconds" != 0 ]; then
    # No dot before the suffix: the report takes it for none of its own curves.
    curve="$out/soak-curve.csv"
    step soak env SOAK_SECONDS="$soak_seconds" SOAK_CURVE="$curve" ci/soak.sh
    step "figures of the soak" python3 ci/soak_figures.py "$curve" "$soak_seconds" \
        "$out/figures.jsonl"
fi

step report "$bench" report --out "$out"
step goals "$bench" goals --out "$out" ${BENCH_STRICT:+--strict}
if [ "${#failed[@]}" -gt 0 ]; then
    echo "bench: failed: ${failed[*]}" >&2
    exit 1
fi
