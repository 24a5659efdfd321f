#!/usr/bin/env bash
# Installs what the checks need and a fresh Debian machine lacks. Needs nothing when all is there.
set -euo pipefail

# command that must be there -> Debian package that brings it
declare -A packages=(
    [cc]=build-essential
    [curl]=curl
    [redis-benchmark]=redis-tools
    [redis-server]=redis-server
    [python3]=python3
    # Instruction counts: ci/micro.sh.
    [valgrind]=valgrind
    # Networks of namespaces, and what goes wrong on them: engine/tests/network.rs.
    [ip]=iproute2
    [nft]=nftables
    # What of a file is in memory: engine/tests/replication.rs.
    [fincore]=util-linux-extra
)

missing=()
for command in "${!packages[@]}"; do
    command -v "$command" > /dev/null || missing+=("${packages[$command]}")
done
# Debian ships venv without pip's wheel unless python3-venv is there.
python3 -c 'import ensurepip, venv' 2> /dev/null || missing+=(python3-venv)

if [ "${#missing[@]}" -gt 0 ]; then
    if ! command -v apt-get > /dev/null; then
        echo "install: these are missing, and there is no apt-get to install them: ${missing[*]}" >&2
        exit 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        echo "install: run as root: apt-get install --yes ${missing[*]}" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # RUNLEVEL: the packaged redis-server must not start a server on the standard port.
    RUNLEVEL=1 apt-get install -qq --yes --no-install-recommends "${missing[@]}"
fi

if ! command -v cargo > /dev/null; then
    echo "install: no cargo: install Rust 1.90 or newer from https://rustup.rs" >&2
    exit 1
fi
echo "install: all there"
