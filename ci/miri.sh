#!/usr/bin/env bash
# Undefined behaviour in what runs under Miri: the formats, what crosses threads, and of the engine
# what needs neither a system call nor a map. The log itself does not: its fake disk holds memory
# files of the system, so that maps of them behave as maps of real files do, and Miri has neither;
# `ci/sanitizers.sh` runs it instead. A small part: Miri is some hundred times slower.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo +nightly miri --version > /dev/null 2>&1; then
    echo "miri: skipped, not installed (rustup +nightly component add miri rust-src)"
    exit 0
fi
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri"
cargo +nightly miri test --package rowship-sync --lib --locked
cargo +nightly miri test --package rowship-proto --lib --locked -- \
    control:: position:: hlc:: value:: room_counts a_sealed_frame messages_round_trip
cargo +nightly miri test --package rowship --lib --locked -- \
    apply::snapshots:: apply::table:: log::layout::tests::an_opening
