"""redis-py against a primary and its replica: what programs really do.

Usage: redis_py_check.py PRIMARY REPLICA, each host:port. Runs with RESP2 and RESP3. Everything
asserted here holds for Redis itself as well, except what `--redis` leaves out, so the check can
be checked against a Redis with one replica.
"""

import argparse
import threading
import time

import redis

KEYS_SCANNED = 5000
TIMEOUT_MS = 10_000


def connect(address, protocol):
    host, port = address.rsplit(":", 1)
    return redis.Redis(
        host=host, port=int(port), protocol=protocol, decode_responses=True, socket_timeout=30
    )


def expect_error(kind, text, call):
    """`call` must raise `kind` with `text` in its message."""
    try:
        result = call()
    except kind as error:
        assert text in str(error), f"expected {text!r} in {error!r}"
        return
    raise AssertionError(f"expected {kind.__name__}, got {result!r}")


def plain_commands(primary, prefix):
    key = f"{prefix}:s"
    assert primary.ping()
    assert primary.get(key) is None
    assert primary.set(key, "1") is True
    assert primary.set(key, "2", nx=True) is None
    assert primary.set(key, "2", xx=True, get=True) == "1"
    assert primary.incr(key) == 3
    assert primary.incrby(key, 39) == 42
    assert primary.append(key, "!") == 3
    assert primary.strlen(key) == 3
    assert primary.type(key) == "string"
    assert primary.mset({f"{prefix}:m{i}": i for i in range(50)}) is True
    values = primary.mget([f"{prefix}:m{i}" for i in range(51)])
    assert values == [str(i) for i in range(50)] + [None]
    assert primary.exists(key, f"{prefix}:m0", f"{prefix}:none") == 2
    assert primary.delete(key, f"{prefix}:m0", f"{prefix}:none") == 2
    expect_error(redis.ResponseError, "not an integer", lambda: failing_incr(primary, key))
    primary.delete(key)


def failing_incr(primary, key):
    primary.set(key, "x")
    return primary.incr(key)


def hashes(primary, prefix):
    key = f"{prefix}:h"
    row = {"year": "1999", "seats": "149", "empty": "", "bytes": "\x00\r\n", "name": "Ærø"}
    assert primary.hset(key, mapping=row) == len(row)
    assert primary.hgetall(key) == row
    assert primary.hset(key, "seats", "150") == 0
    assert primary.hget(key, "seats") == "150"
    assert primary.hmget(key, "year", "none") == ["1999", None]
    assert primary.hincrby(key, "seats", -50) == 100
    assert primary.hlen(key) == len(row)
    assert primary.hdel(key, "year", "none") == 1
    assert primary.hgetall(f"{prefix}:nothing") == {}
    assert primary.type(key) == "hash"
    expect_error(redis.ResponseError, "WRONGTYPE", lambda: primary.get(key))
    primary.set(f"{prefix}:string", "x")
    expect_error(redis.ResponseError, "WRONGTYPE", lambda: primary.hget(f"{prefix}:string", "f"))


def pipelines(primary, prefix):
    with primary.pipeline(transaction=False) as pipe:
        for i in range(1000):
            pipe.hset(f"{prefix}:p{i}", mapping={"i": i})
            pipe.hget(f"{prefix}:p{i}", "i")
        replies = pipe.execute()
    assert replies[0::2] == [1] * 1000
    assert replies[1::2] == [str(i) for i in range(1000)]
    # An error in the middle does not disturb the replies around it.
    with primary.pipeline(transaction=False) as pipe:
        pipe.set(f"{prefix}:e", "x").incr(f"{prefix}:e").get(f"{prefix}:e")
        replies = pipe.execute(raise_on_error=False)
    assert replies[0] is True and replies[2] == "x", replies
    assert isinstance(replies[1], redis.ResponseError), replies


def transactions(primary, prefix):
    a, b = f"{prefix}:a", f"{prefix}:b"
    with primary.pipeline(transaction=True) as pipe:
        pipe.set(a, 10).incrby(a, 5).hset(b, mapping={"x": 1}).hgetall(b)
        assert pipe.execute() == [True, 15, 1, {"x": "1"}]
    # A command that fails when it runs leaves the others as they are, as in Redis.
    with primary.pipeline(transaction=True) as pipe:
        pipe.set(a, 20).hget(a, "field").incr(a)
        replies = pipe.execute(raise_on_error=False)
    assert replies[0] is True and replies[2] == 21, replies
    assert isinstance(replies[1], redis.ResponseError), replies
    # A command that cannot be queued aborts all of them.
    with primary.pipeline(transaction=True) as pipe:
        pipe.set(a, 99).execute_command("NOSUCHCOMMAND")
        try:
            pipe.execute()
            raise AssertionError("EXEC of a transaction with an unknown command succeeded")
        except redis.ResponseError:
            pass
    assert primary.get(a) == "21"


def watches(primary, prefix):
    """WATCH: a counter that many connections raise by read and write loses nothing."""
    key, workers, rounds = f"{prefix}:w", 4, 25
    primary.set(key, 0)
    conflicts = []

    def raise_it(pipe):
        value = int(pipe.get(key))
        pipe.multi()
        pipe.set(key, value + 1)

    def work():
        for _ in range(rounds):
            with primary.pipeline() as pipe:
                while True:
                    try:
                        pipe.watch(key)
                        raise_it(pipe)
                        pipe.execute()
                        break
                    except redis.WatchError:
                        conflicts.append(1)

    run_all([work] * workers)
    assert primary.get(key) == str(workers * rounds), primary.get(key)
    # One conflict by design.
    with primary.pipeline() as pipe:
        pipe.watch(key)
        primary.set(key, "other")
        pipe.multi()
        pipe.set(key, "mine")
        expect_error(redis.WatchError, "", pipe.execute)
    assert primary.get(key) == "other"
    return len(conflicts)


def run_all(works):
    """Runs all of `works` in threads; the first error of any is raised."""
    errors = []

    def guarded(work):
        try:
            work()
        except BaseException as error:  # handed to the caller below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def scans(primary, prefix):
    """SCAN over thousands of keys while others come and go: what stays is returned."""
    staying = {f"{prefix}:stay{i}" for i in range(KEYS_SCANNED)}
    with primary.pipeline(transaction=False) as pipe:
        for key in staying:
            pipe.set(key, "x")
        pipe.execute()
    stop = threading.Event()
    written = []

    def write():
        i = 0
        while not stop.is_set():
            primary.set(f"{prefix}:go{i % 500}", i)
            primary.delete(f"{prefix}:go{(i + 250) % 500}")
            primary.set(f"{prefix}:stay{i % KEYS_SCANNED}", i)
            i += 1
        written.append(i)

    def scan():
        try:
            for count in (10, 100, 1000):
                seen = set(primary.scan_iter(match=f"{prefix}:*", count=count))
                missing = staying - seen
                assert not missing, f"SCAN lost {len(missing)} keys, such as {min(missing)}"
            for key in primary.scan_iter(match=f"{prefix}:stay1?", count=500):
                assert len(key) == len(f"{prefix}:stay1?"), key
        finally:
            stop.set()

    run_all([write, scan])
    assert written[0] > 0, "no write went on beside the scan"
    assert primary.dbsize() >= KEYS_SCANNED
    return written[0]


def replication(primary, replica, prefix, real_redis):
    """WAIT counts the replica; what it acknowledged is there to read."""
    key = f"{prefix}:r"
    row = {f"c{i}": str(i) for i in range(20)}
    # One connection: WAIT is about the writes of the connection that asks.
    with primary.client() as one:
        one.hset(key, mapping=row)
        assert one.wait(1, TIMEOUT_MS) >= 1
        assert one.wait(0, TIMEOUT_MS) >= 0
        # More replicas than there are: the answer is how many there are, after the timeout.
        started = time.monotonic()
        assert one.wait(5, 200) == 1
        assert time.monotonic() - started >= 0.15
        if real_redis:
            assert soon(lambda: replica.hgetall(key) == row)
        else:
            position = one.execute_command("ROWSHIP.POSITION")
            token = position[0] if isinstance(position, list) else next(iter(position.values()))
            answer = replica.execute_command("ROWSHIP.WAITPOS", token, TIMEOUT_MS)
            assert "reached" in str(answer), answer
            assert replica.hgetall(key) == row
    expect_error(redis.ReadOnlyError, "", lambda: replica.set(key, "x"))
    assert primary.role()[0] in ("master", b"master"), primary.role()
    assert replica.role()[0] in ("slave", b"slave"), replica.role()
    assert primary.info("replication")["role"] == "master"
    # A transaction is visible as a whole: both rows always hold the same number.
    x, y, stop = f"{prefix}:x", f"{prefix}:y", threading.Event()

    def write():
        try:
            for i in range(500):
                with primary.pipeline(transaction=True) as pipe:
                    pipe.set(x, i).set(y, i).execute()
        finally:
            stop.set()

    def read():
        while not stop.is_set():
            pair = replica.mget(x, y)
            assert pair[0] == pair[1], f"half a transaction: {pair}"

    run_all([write, read])
    assert soon(lambda: replica.mget(x, y) == ["499", "499"])


def soon(condition):
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("primary")
    parser.add_argument("replica")
    parser.add_argument("--redis", action="store_true", help="both are Redis servers")
    args = parser.parse_args()
    for protocol in (2, 3):
        primary = connect(args.primary, protocol)
        replica = connect(args.replica, protocol)
        prefix = f"py{protocol}x{time.time_ns()}"
        plain_commands(primary, prefix)
        hashes(primary, prefix)
        pipelines(primary, prefix)
        transactions(primary, prefix)
        conflicts = watches(primary, prefix)
        writes = scans(primary, prefix)
        replication(primary, replica, prefix, args.redis)
        print(
            f"redis-py {redis.__version__}, RESP{protocol}: all as in Redis "
            f"({conflicts} conflicts under WATCH, {writes} rounds of writes beside SCAN)"
        )


if __name__ == "__main__":
    main()
