#!/usr/bin/env bash
# Clippy finds nothing, anywhere.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo clippy --workspace --all-targets --locked -- -D warnings
