# Starts and stops nodes for the scripts beside it: source it, then `lib_begin NAME`.
#
# Everything lives in one temporary directory; all processes started here, and only those, are
# ended by their pids when the script ends. ROWSHIP names another binary than the release build.

# Longest wait for a node to listen, or to stop, in tenths of a second: two segments are zeroed
# at a first start.
LIB_WAIT_TENTHS=600

lib_begin() {
    lib_name="$1"
    ROWSHIP="${ROWSHIP:-${CARGO_TARGET_DIR:-target}/release/rowship}"
    if [ ! -x "$ROWSHIP" ]; then
        cargo build --release --locked --package rowship
    fi
    lib_directory="$(mktemp -d "${TMPDIR:-/tmp}/rowship-$lib_name.XXXXXX")"
    declare -gA lib_pids=()
    trap lib_end EXIT
    trap 'exit 130' INT TERM
}

lib_fail() {
    echo "$lib_name: $*" >&2
    exit 1
}

# start_node NAME FLAGS...: a node on free ports; waits until it accepts. With a network of
# lib_network, it is a machine of its own there.
start_node() {
    local name="$1" host=127.0.0.1 inside=()
    shift
    if [ -n "${lib_net:-}" ]; then
        lib_machine "$name"
        host="$lib_host"
        inside=(ip netns exec "$lib_net-$name")
        set -- --allow-unauthenticated "$@"
    fi
    "${inside[@]}" "$ROWSHIP" serve --data-dir "$lib_directory/$name" --name "$name" \
        --listen "$host:0" --replication-listen "$host:0" "$@" \
        2> "$lib_directory/$name.log" &
    lib_pids[$name]=$!
    local waited=0
    until [ -s "$lib_directory/$name/addresses.json" ]; do
        kill -0 "${lib_pids[$name]}" 2> /dev/null || lib_fail "$name ended while starting"
        [ "$waited" -lt "$LIB_WAIT_TENTHS" ] || lib_fail "$name does not listen"
        sleep 0.1
        waited=$((waited + 1))
    done
}

# lib_network: from now on every node has a network namespace, behind a switch. False, with a line
# that says why, where that cannot be.
lib_network() {
    if [ "$(id -u)" -ne 0 ] || ! command -v ip > /dev/null; then
        echo "$lib_name: on loopback: network namespaces need root and iproute2"
        return 1
    fi
    lib_net="rowship-$lib_name-$$" lib_machines=()
    if ! ip netns add "$lib_net-switch" 2> /dev/null; then
        echo "$lib_name: on loopback: network namespaces are not allowed here"
        lib_net=
        return 1
    fi
    lib_machines+=(switch)
    ip -n "$lib_net-switch" link set lo up
    ip -n "$lib_net-switch" link add bridge type bridge
    ip -n "$lib_net-switch" address add 10.78.0.254/24 dev bridge
    ip -n "$lib_net-switch" link set bridge up
}

# lib_machine NAME: a namespace on the switch; its address in lib_host.
lib_machine() {
    local space="$lib_net-$1"
    lib_host="10.78.0.${#lib_machines[@]}"
    ip netns add "$space"
    lib_machines+=("$1")
    ip -n "$space" link set lo up
    ip -n "$lib_net-switch" link add name "to-$1" type veth peer name wire netns "$space"
    ip -n "$lib_net-switch" link set "to-$1" master bridge up
    ip -n "$space" address add "$lib_host/24" dev wire
    ip -n "$space" link set wire up
}

# at_switch COMMAND...: runs it where all nodes can be reached.
at_switch() {
    if [ -n "${lib_net:-}" ]; then
        ip netns exec "$lib_net-switch" "$@"
    else
        "$@"
    fi
}

# address_of NAME [listen|replication_listen]: host:port.
address_of() {
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' \
        "$lib_directory/$1/addresses.json" "${2:-listen}"
}

# await_end NAME: its exit code in lib_code, after at most the longest wait.
await_end() {
    local pid="${lib_pids[$1]}" waited=0
    while kill -0 "$pid" 2> /dev/null && [ "$waited" -lt "$LIB_WAIT_TENTHS" ]; do
        sleep 0.1
        waited=$((waited + 1))
    done
    if kill -0 "$pid" 2> /dev/null; then
        kill -KILL "$pid" 2> /dev/null || true
    fi
    lib_code=0
    wait "$pid" || lib_code=$?
    unset "lib_pids[$1]"
}

# stop_node NAME: SIGTERM; anything but a clean end is a failure.
stop_node() {
    kill -TERM "${lib_pids[$1]}" 2> /dev/null || true
    await_end "$1"
    [ "$lib_code" -eq 0 ] || lib_fail "$1 ended with exit code $lib_code"
}

lib_end() {
    local code=$? name
    trap - EXIT
    for name in "${!lib_pids[@]}"; do
        kill -TERM "${lib_pids[$name]}" 2> /dev/null || true
    done
    for name in "${!lib_pids[@]}"; do
        await_end "$name"
    done
    if [ "$code" -ne 0 ]; then
        for log in "$lib_directory"/*.log; do
            [ -e "$log" ] || continue
            echo "$lib_name: end of $(basename "$log"):" >&2
            tail -n 20 "$log" >&2
        done
    fi
    for name in "${lib_machines[@]:-}"; do
        [ -z "$name" ] || ip netns delete "$lib_net-$name"
    done
    rm -rf "$lib_directory"
    exit "$code"
}
