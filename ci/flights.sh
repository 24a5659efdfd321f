#!/usr/bin/env bash
# Loads the flights under async, semi-sync and sync into a primary with two replicas, each time
# from nothing: all nodes end identical, a replica gives back CSV lines, every log verifies.
# FLIGHTS_ROWS: only so many rows (all); FLIGHTS_FILE: another place of the file.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=ci/lib.sh
source ci/lib.sh

file="${FLIGHTS_FILE:-../shared/data/flights.csv.gz}"
if [ ! -e "$file" ]; then
    echo "flights: skipped, there is no $file"
    exit 0
fi
lib_begin flights

if [ -n "${FLIGHTS_ROWS:-}" ]; then
    # awk reads to the end: head would break the pipe.
    gzip -dc "$file" | awk -v last="$FLIGHTS_ROWS" 'NR <= last + 1' | gzip -1 \
        > "$lib_directory/flights.csv.gz"
    file="$lib_directory/flights.csv.gz"
fi
key=carrier,flight,origin,year,month,day,sched_dep_time
rows="$(gzip -dc "$file" | tail -n +2 | wc -l)"

# check_policy ACK FLAGS...: one round under this policy.
check_policy() {
    local ack="$1" started=$SECONDS node
    shift
    # The primary first: replicas ask it where to start. With sync it waits for both.
    start_node "$ack-a" "$@"
    local replication
    replication="$(address_of "$ack-a" replication_listen)"
    start_node "$ack-b" --replica-of "$replication"
    start_node "$ack-c" --replica-of "$replication"
    local primary
    primary="$(address_of "$ack-a")"

    timeout 300 "$ROWSHIP" load "$file" --to "$primary" --table flights --key "$key"
    for node in "$ack-b" "$ack-c"; do
        "$ROWSHIP" diff "$primary" "$(address_of "$node")" --timeout 60
    done
    local stored
    stored="$("$ROWSHIP" call "$primary" DBSIZE)"
    [ "$stored" = "$rows" ] || lib_fail "$stored rows stored of $rows loaded"
    python3 ci/flights_check.py "$file" "$key" "$(address_of "$ack-c")"
    for node in "$ack-c" "$ack-b" "$ack-a"; do
        stop_node "$node"
        "$ROWSHIP" log verify "$lib_directory/$node"
        # Full flights under three policies need gigabytes of log otherwise.
        rm -rf "${lib_directory:?}/$node"
    done
    echo "flights: $rows rows under $ack: identical on three nodes, $((SECONDS - started)) s"
}

check_policy async --ack async
check_policy semi-sync --ack semi-sync
check_policy sync --ack sync --replicas sync-b,sync-c
