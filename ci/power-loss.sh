#!/usr/bin/env bash
# Power loss on a file system of the test's own, many rounds; prints the seed of each run. Needs
# root and /dev/fuse, and says so where they are missing. Arguments go to cargo test.
set -euo pipefail
cd "$(dirname "$0")/.."

export ROWSHIP_POWER_ROUNDS="${ROWSHIP_POWER_ROUNDS:-250}"
cargo test --package rowship --test power_loss --locked "$@" -- --nocapture --test-threads 1
