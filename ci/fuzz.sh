#!/usr/bin/env bash
# Builds every fuzz target and runs each for FUZZ_SECONDS (10). With INSTALL_FUZZ=1 it installs
# cargo-fuzz when that is missing; nightly Rust is needed as well.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds="${FUZZ_SECONDS:-10}"
if ! rustc +nightly --version > /dev/null 2>&1; then
    echo "fuzz: skipped, no nightly Rust (rustup toolchain install nightly)"
    exit 0
fi
if ! cargo fuzz --version > /dev/null 2>&1; then
    if [ "${INSTALL_FUZZ:-0}" != 1 ]; then
        echo "fuzz: skipped, no cargo-fuzz (INSTALL_FUZZ=1 installs it)"
        exit 0
    fi
    cargo install cargo-fuzz --locked
fi

# What a run finds new goes to a scratch folder; the corpus that is checked in stays small.
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
cargo +nightly fuzz build
for target in $(cargo +nightly fuzz list); do
    echo "fuzz: $target for $seconds s"
    mkdir "$scratch/$target"
    cargo +nightly fuzz run "$target" "$scratch/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=1024 -verbosity=0 -print_final_stats=1
done
