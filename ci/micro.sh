#!/usr/bin/env bash
# Instructions of the inner loops, counted under callgrind (engine/benches/micro.rs): fails when one
# takes more than its limit.
set -euo pipefail
cd "$(dirname "$0")/.."

# The library and what runs it must be of one version.
version="$(sed -n '/^name = "gungraun"$/{n;s/^version = "\(.*\)"$/\1/p}' Cargo.lock)"
tools="${CARGO_TARGET_DIR:-target}/tools"
export GUNGRAUN_RUNNER="$PWD/$tools/bin/gungraun-runner"
case "$tools" in /*) GUNGRAUN_RUNNER="$tools/bin/gungraun-runner" ;; esac
if ! "$GUNGRAUN_RUNNER" --version 2> /dev/null | grep -qF "$version"; then
    cargo install --quiet --debug --locked --root "$tools" gungraun-runner --version "=$version"
fi
cargo bench --locked --package rowship --bench micro
