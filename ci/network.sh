#!/usr/bin/env bash
# Nodes on a real network that fails: engine/tests/network.rs, in network namespaces of its own.
# Needs root, iproute2 and nftables (ci/install.sh): without them it says SKIPPED and ends well.
# Arguments go to the tests: names, or --test-threads 1.
set -euo pipefail
cd "$(dirname "$0")/.."

# What went wrong is in what the tests say: figures of each fault are shown.
cargo test --package rowship --test network --locked -- --nocapture "$@"
