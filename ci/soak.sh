#!/usr/bin/env bash
# A primary with two replicas under a steady load of rows, for SOAK_SECONDS (60): memory,
# descriptors and lag stay flat, nothing is refused, nodes end identical, all logs verify. Each
# node has a network namespace of its own where that is possible.
# The curve goes to SOAK_CURVE (target/soak.csv) and, thinned out, to the screen.
#
# SOAK_ROWS: rows per second (3000). SOAK_LEAK=1 makes a client hold ever more memory and
# descriptors of the primary: the check must fail then.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=ci/lib.sh
source ci/lib.sh
lib_begin soak
lib_network || true

# Standard sizes but for what fills up: a minute is to see a few memtables, and a full cache.
sizes=(--memtable-bytes 8MiB --cache-bytes 8MiB)
start_node a --ack semi-sync "${sizes[@]}"
replication="$(address_of a replication_listen)"
start_node b --replica-of "$replication" "${sizes[@]}"
start_node c --replica-of "$replication" "${sizes[@]}"

curve="${SOAK_CURVE:-${CARGO_TARGET_DIR:-target}/soak.csv}"
at_switch python3 ci/soak_load.py --seconds "${SOAK_SECONDS:-60}" --rows "${SOAK_ROWS:-3000}" \
    --curve "$curve" ${SOAK_LEAK:+--leak} \
    "$(address_of a)=${lib_pids[a]}" "$(address_of b)=${lib_pids[b]}" \
    "$(address_of c)=${lib_pids[c]}"

for node in b c; do
    at_switch "$ROWSHIP" diff "$(address_of a)" "$(address_of "$node")" --timeout 60
done
for node in c b a; do
    stop_node "$node"
    "$ROWSHIP" log verify "$lib_directory/$node"
done
