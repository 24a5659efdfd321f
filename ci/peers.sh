#!/usr/bin/env bash
# The same work against MariaDB, PostgreSQL and Redis, in turn with ours: installs from Debian
# packages what is missing of them, then runs the scenario `peers` with the arguments given here
# (`ci/peers.sh --only redis --work ingest`). Debian's own servers are neither started nor touched.
set -euo pipefail
cd "$(dirname "$0")/.."

present() {
    case "$1" in
        postgresql) compgen -G '/usr/lib/postgresql/*/bin/postgres' > /dev/null ;;
        mariadb-server) [ -x /usr/sbin/mariadbd ] ;;
        *) command -v "$1" > /dev/null ;;
    esac
}

# Packages that are installed, quietly and without starting what they bring.
install() {
    # RUNLEVEL: packaged servers must not start on their standard ports.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq --yes --no-install-recommends "$@" > /dev/null
}

missing=()
for package in redis-server postgresql mariadb-server; do
    present "$package" || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
    if ! command -v apt-get > /dev/null; then
        echo "peers: missing, and there is no apt-get to install them: ${missing[*]}" >&2
        exit 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        echo "peers: run as root: apt-get install --yes ${missing[*]}" >&2
        exit 1
    fi
    apt-get update -qq
    if [[ " ${missing[*]} " == *" postgresql "* ]]; then
        # Its settings first: with them the server's package makes no cluster of its own.
        install postgresql-common
        sed --regexp-extended --in-place 's/^#?(create_main_cluster) .*$/\1 = false/' \
            /etc/postgresql-common/createcluster.conf
    fi
    install "${missing[@]}"
    echo "peers: installed ${missing[*]}"
fi

exec cargo run --release --locked --quiet --package bench -- peers "$@"
