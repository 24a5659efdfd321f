#!/usr/bin/env bash
# Undefined behaviour in what runs under Miri: the formats, what crosses threads, the log on files
# that the modelled disk keeps on the heap (edge/sim/file.rs), and of the engine what needs neither
# a system call nor a map. A small part: Miri is some hundred times slower.
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
    apply::snapshots:: apply::table:: log::layout::tests::an_opening \
    log::segment:: log::seen:: log::scan:: log::crash_tests::recovery_finds_all \
    log::damage_tests::missing_segments log::damage_tests::a_bent_header_page
