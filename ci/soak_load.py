"""A steady load on a primary and its replicas, and the curve of what they need for it.

Usage: soak_load.py [options] PRIMARY REPLICA..., each host:port=pid. Ends with 1, and says why,
when a write is refused or lost, or when a curve is not flat:

- memory (resident, in MiB, without what is shared with files) and open descriptors of each node: the line
  of least squares through the last two thirds of the run rises by at most MEMORY_RISE_MIB and
  MEMORY_RISE_PART of the mean, or by at most DESCRIPTORS_RISE;
- lag (from sending a write until all replicas show it): its median in the last third is at most
  LAG_RISE times the one in the second third, and LAG_SLACK_MS.
"""

import argparse
import csv
import json
import os
import random
import socket
import statistics
import sys
import threading
import time

MEMORY_RISE_MIB = 12
MEMORY_RISE_PART = 0.10
DESCRIPTORS_RISE = 10
LAG_RISE = 2
LAG_SLACK_MS = 5
# A write that takes longer is one that was not acknowledged.
REPLY_TIMEOUT_S = 30
BATCHES_PER_SECOND = 50
PROBES_PER_SECOND = 10
KEYS = 50_000
SAMPLES = 60
LINES_SHOWN = 30


class Client:
    """One connection; replies are what redis-cli would show, errors raise."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=REPLY_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.replies = self.socket.makefile("rb")

    def send(self, *commands):
        parts = []
        for command in commands:
            parts.append(b"*%d\r\n" % len(command))
            for word in command:
                word = word if isinstance(word, bytes) else str(word).encode()
                parts.append(b"$%d\r\n%s\r\n" % (len(word), word))
        self.socket.sendall(b"".join(parts))

    def receive(self):
        line = self.replies.readline()
        if not line:
            raise ConnectionError("the node closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind == b"$":
            length = int(rest)
            return None if length < 0 else self.replies.read(length + 2)[:-2]
        if kind == b"*":
            return [self.receive() for _ in range(int(rest))]
        return int(rest) if kind == b":" else rest

    def ask(self, *command):
        self.send(command)
        return self.receive()


class Load:
    """What the threads share. Whatever goes wrong in one of them ends all."""

    def __init__(self):
        self.stop = threading.Event()
        self.failure = None
        self.lags_ms = []
        self.acknowledged = 0

    def run(self, work, *arguments):
        def guarded():
            try:
                work(self, *arguments)
            except Exception as error:  # noqa: BLE001: said by main, which ends with 1
                self.failure = self.failure or f"{work.__name__}: {error!r}"
                self.stop.set()

        thread = threading.Thread(target=guarded)
        thread.start()
        return thread


def write_rows(load, address, rows_per_second):
    """Batches of rows at a steady pace; one that is late is not made up for."""
    client, dice = Client(address), random.Random(7)
    batch = max(1, rows_per_second // BATCHES_PER_SECOND)
    due = time.monotonic()
    while not load.stop.is_set():
        rows = [
            ("HSET", f"planes:{dice.randrange(KEYS)}", "seats", dice.randrange(400), "model",
             "737-824", "engine", "Turbo-fan", "note", f"{dice.getrandbits(256):064x}")
            for _ in range(batch)
        ]
        client.send(*rows)
        for _ in rows:
            client.receive()
        load.acknowledged += batch
        due = max(due + 1 / BATCHES_PER_SECOND, time.monotonic() - 1)
        load.stop.wait(max(0.0, due - time.monotonic()))


def probe(load, primary, replicas):
    """How long it takes until a write is shown by all replicas."""
    writer, readers = Client(primary), [Client(address) for address in replicas]
    number = 0
    while not load.stop.wait(1 / PROBES_PER_SECOND):
        number += 1
        began = time.monotonic()
        writer.ask("SET", "probe", number)
        token = writer.ask("ROWSHIP.POSITION")[0]
        for reader in readers:
            reader.send(("ROWSHIP.WAITPOS", token, 10_000))
        answers = [reader.receive() for reader in readers]
        load.lags_ms.append((time.monotonic() - began) * 1000)
        for reader, answer in zip(readers, answers):
            shown = reader.ask("GET", "probe")
            if answer[0] != b"reached" or int(shown or 0) < number:
                raise AssertionError(f"write {number} is {answer}, and {shown} is shown")


def leak(load, address):
    """What must not go unnoticed: a client that holds ever more of the primary."""
    queue, idle = Client(address), []
    queue.ask("MULTI")
    while not load.stop.wait(0.2):
        queue.ask("SET", "leak", b"x" * 100_000)
        idle.append(Client(address))


def memory_mib(pid):
    with open(f"/proc/{pid}/statm") as statm:
        _, resident, shared = statm.read().split()[:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE") / (1 << 20)


def percentile(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


def sample(load, nodes, status, seconds, before):
    """One line of the curve, and what the next one compares with."""
    counters = json.loads(status.ask("ROWSHIP.STATUS"))["counters"]
    now = (time.monotonic(), counters["transactions"], counters["log_writes"], load.acknowledged)
    span = now[0] - before[0]
    lags, load.lags_ms = load.lags_ms, []
    line = {"time_s": round(seconds)}
    for number, (_, pid) in enumerate(nodes):
        line[f"memory_mib_{number}"] = round(memory_mib(pid), 1)
        line[f"descriptors_{number}"] = len(os.listdir(f"/proc/{pid}/fd"))
    line["lag_p50_ms"] = round(percentile(lags, 0.5), 2)
    line["lag_p99_ms"] = round(percentile(lags, 0.99), 2)
    line["commits_per_s"] = round((now[1] - before[1]) / span)
    line["log_writes_per_s"] = round((now[2] - before[2]) / span)
    line["rows_per_s"] = round((now[3] - before[3]) / span)
    return line, now


def rise(lines, column):
    """Rise of the line of least squares over the last two thirds, and their mean."""
    last = lines[len(lines) // 3:]
    times, values = [line["time_s"] for line in last], [line[column] for line in last]
    mean_time, mean = statistics.fmean(times), statistics.fmean(values)
    spread = sum((t - mean_time) ** 2 for t in times)
    slope = sum((t - mean_time) * (v - mean) for t, v in zip(times, values)) / spread
    return slope * (times[-1] - times[0]), mean


def judge(lines, nodes, rows_per_second):
    """What is not as it should be."""
    found = []
    for number in range(nodes):
        risen, mean = rise(lines, f"memory_mib_{number}")
        bound = MEMORY_RISE_MIB + MEMORY_RISE_PART * mean
        print(f"soak: node {number}: memory {risen:+.1f} MiB (mean {mean:.0f}, bound {bound:.1f})")
        if risen > bound:
            found.append(f"memory of node {number} rises by {risen:.1f} MiB")
        risen, mean = rise(lines, f"descriptors_{number}")
        print(f"soak: node {number}: descriptors {risen:+.1f} (mean {mean:.0f})")
        if risen > DESCRIPTORS_RISE:
            found.append(f"node {number} opens {risen:.0f} more descriptors")
    third = len(lines) // 3
    second = statistics.median(line["lag_p50_ms"] for line in lines[third:2 * third])
    last = statistics.median(line["lag_p50_ms"] for line in lines[2 * third:])
    print(f"soak: median lag {second:.2f} ms, in the last third {last:.2f} ms")
    if last > LAG_RISE * second + LAG_SLACK_MS:
        found.append(f"lag rises from {second:.2f} to {last:.2f} ms")
    rows = statistics.median(line["rows_per_s"] for line in lines)
    if rows < rows_per_second / 2:
        found.append(f"{rows} rows per second were acknowledged of {rows_per_second}")
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--curve", required=True)
    parser.add_argument("--leak", action="store_true")
    parser.add_argument("nodes", nargs="+")
    options = parser.parse_args()
    nodes = [tuple(node.split("=")) for node in options.nodes]
    addresses = [address for address, _ in nodes]

    load, status = Load(), Client(addresses[0])
    threads = [
        load.run(write_rows, addresses[0], options.rows),
        load.run(probe, addresses[0], addresses[1:]),
    ]
    if options.leak:
        threads.append(load.run(leak, addresses[0]))
    began, lines = time.monotonic(), []
    step = max(1.0, options.seconds / SAMPLES)
    _, before = sample(load, nodes, status, 0, (began - step, 0, 0, 0))
    with open(options.curve, "w", newline="") as file:
        curve = None
        while not load.stop.wait(step) and time.monotonic() - began < options.seconds:
            line, before = sample(load, nodes, status, time.monotonic() - began, before)
            lines.append(line)
            curve = curve or csv.DictWriter(file, line)
            if len(lines) == 1:
                curve.writeheader()
            curve.writerow(line)
            file.flush()
    load.stop.set()
    for thread in threads:
        thread.join()

    for number, line in enumerate(lines):
        if number == 0:
            print(" ".join(line))
        if number % max(1, len(lines) // LINES_SHOWN) == 0:
            print(" ".join(str(value) for value in line.values()))
    if load.failure:
        sys.exit(f"soak: {load.failure}")
    if len(lines) < 9:
        sys.exit(f"soak: {len(lines)} samples in {options.seconds} s: too few to judge")
    found = judge(lines, len(nodes), options.rows)
    if found:
        sys.exit("soak: " + "; ".join(found))
    print(f"soak: {load.acknowledged} rows acknowledged in {options.seconds} s; all flat")


if __name__ == "__main__":
    main()
