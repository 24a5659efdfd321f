#!/usr/bin/env bash
# The tests of lanes, tables and the log under AddressSanitizer, and under ThreadSanitizer
# where the standard library can be built with it (its own fences are false alarms otherwise).
# Needs nightly Rust; sanitizers have target directories of their own.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! rustc +nightly --version > /dev/null 2>&1; then
    echo "sanitizers: skipped, no nightly Rust (rustup toolchain install nightly)"
    exit 0
fi
host="$(rustc +nightly -vV | sed -n 's/^host: //p')"
target="${CARGO_TARGET_DIR:-target}"
# What crosses threads or reads maps; the fuzz targets' seeds ride along.
tests=(apply:: log:: fuzzing::)

echo "sanitizers: address"
RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR="$target/asan" \
    cargo +nightly test --package rowship --lib --target "$host" --locked -- "${tests[@]}"

source_of_std="$(rustc +nightly --print sysroot)/lib/rustlib/src/rust/library/std/src/lib.rs"
if [ ! -e "$source_of_std" ]; then
    echo "sanitizers: thread skipped, no rust-src (rustup +nightly component add rust-src)"
    exit 0
fi
echo "sanitizers: thread"
RUSTFLAGS="-Zsanitizer=thread" CARGO_TARGET_DIR="$target/tsan" \
    cargo +nightly test -Zbuild-std --package rowship --package rowship-sync --lib \
    --target "$host" --locked -- apply:: log::pool:: watermark countdown stock
