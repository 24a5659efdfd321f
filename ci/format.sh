#!/usr/bin/env bash
# rustfmt finds nothing to change.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --all --check
# fuzz is a workspace of its own.
cargo fmt --manifest-path fuzz/Cargo.toml --check
