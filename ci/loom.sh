#!/usr/bin/env bash
# The models of engine/sync, over all interleavings. Its own target directory: the cfg would
# rebuild everything else otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."

RUSTFLAGS="--cfg rowship_loom" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom" \
    cargo test --package loom-tests --release --locked "$@"
