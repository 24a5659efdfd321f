#!/usr/bin/env bash
# All tests of the workspace: the README's second command. Arguments go to cargo test.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo test --workspace "$@"
