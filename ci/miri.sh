#!/usr/bin/env bash
# Undefined behaviour in the packages that run under Miri: the formats and what crosses threads.
# A small part: Miri is some hundred times slower.
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
