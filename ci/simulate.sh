#!/usr/bin/env bash
# Simulated clusters from seeds: SIM_SEEDS of them from SIM_FROM on, each with SIM_CHAOS_MS virtual
# milliseconds of faults. The run fails when a promise is broken (and prints the seed), or when a
# rare path was never reached. A long run: SIM_SEEDS=20000 SIM_CHAOS_MS=30000 ci/simulate.sh
set -euo pipefail
cd "$(dirname "$0")/.."

cargo run --locked --package rowship-sim -- --seeds "${SIM_SEEDS:-400}" --from "${SIM_FROM:-1}" \
    --chaos-ms "${SIM_CHAOS_MS:-6000}" --threads "${SIM_THREADS:-2}" --all-marks
