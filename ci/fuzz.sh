#!/usr/bin/env bash
# Builds every fuzz target (or those named as arguments) and runs each for FUZZ_SECONDS (5), one
# after the other; a line per target says what was done. Needs nightly Rust; cargo-fuzz is
# installed when it is missing. FUZZ_KEEP=<folder> keeps what was found new, and goes on from it.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds="${FUZZ_SECONDS:-5}"
if ! rustc +nightly --version > /dev/null 2>&1; then
    echo "fuzz: skipped, no nightly Rust (rustup toolchain install nightly)"
    exit 0
fi
if ! cargo fuzz --version > /dev/null 2>&1; then
    echo "fuzz: installing cargo-fuzz"
    log="$(mktemp)"
    if ! cargo install cargo-fuzz --debug --locked > "$log" 2>&1; then
        echo "fuzz: skipped, cargo-fuzz cannot be installed ($(tail -n 1 "$log"))"
        rm -f "$log"
        exit 0
    fi
    rm -f "$log"
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
fi

if [ $# -eq 0 ]; then
    read -r -a targets <<< "$(cargo +nightly fuzz list | tr '\n' ' ')"
else
    targets=("$@")
fi

# What a run finds new goes to a scratch folder; the corpus that is checked in stays small.
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
# All at once where all are wanted: one after the other repeats much of the work.
if [ $# -eq 0 ]; then
    cargo +nightly fuzz build
else
    for target in "${targets[@]}"; do
        cargo +nightly fuzz build "$target"
    done
fi

# "cov: N" counts the edges of code that were reached: by the seeds, and at the end.
edges() {
    grep -oE "$1 +cov: [0-9]+" "$2" | tail -n 1 | grep -oE '[0-9]+$' || echo '?'
}

printf '%-14s %12s %9s %10s %10s %8s\n' target executions 'per s' 'cov seeds' 'cov end' seconds
for target in "${targets[@]}"; do
    found="${FUZZ_KEEP:-$scratch}/$target" log="$scratch/$target.log" started=$SECONDS
    mkdir -p "$found"
    inputs=("$found" "fuzz/corpus/$target")
    [ ! -d "fuzz/regressions/$target" ] || inputs+=("fuzz/regressions/$target")
    if ! cargo +nightly fuzz run "$target" "${inputs[@]}" -- -max_total_time="$seconds" \
        -rss_limit_mb=1024 -max_len=4096 -timeout=20 -print_final_stats=1 > "$log" 2>&1; then
        tail -n 80 "$log"
        echo "fuzz: $target found a defect; its input is in fuzz/artifacts/$target"
        exit 1
    fi
    executions="$(grep -oE 'number_of_executed_units: [0-9]+' "$log" | grep -oE '[0-9]+' || echo 0)"
    took=$((SECONDS - started))
    printf '%-14s %12s %9s %10s %10s %8s\n' "$target" "$executions" \
        $((executions / (took > 0 ? took : 1))) "$(edges INITED "$log")" "$(edges DONE "$log")" \
        "$took"
done
