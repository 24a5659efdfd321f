"""HGETALL of rows on a node equals their lines of the CSV file.

Usage: flights_check.py FILE.csv.gz KEY,COLUMNS HOST:PORT. Looks at rows spread over the file.
"""

import csv
import gzip
import socket
import sys

ROWS_CHECKED = 200


class Connection:
    """As much of RESP2 as this needs; without a library."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.reader = self.socket.makefile("rb")

    def call(self, *arguments):
        parts = [b"*%d\r\n" % len(arguments)]
        for argument in arguments:
            data = argument.encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
        self.socket.sendall(b"".join(parts))
        return self.reply()

    def reply(self):
        line = self.reader.readline()
        kind, rest = line[:1], line[1:].strip()
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.reader.read(size + 2)[:-2].decode()
        if kind in (b"+", b":"):
            return rest.decode()
        sys.exit(f"flights: unexpected reply {line!r}")


def main():
    path, key_columns, address = sys.argv[1:]
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = {}
    for line in lines:
        key = ":".join(line[column] for column in key_columns.split(","))
        rows[f"flights:{key}"] = line
    if len(rows) != len(lines):
        sys.exit(f"flights: {len(lines)} lines have only {len(rows)} keys")
    step = max(1, len(rows) // ROWS_CHECKED)
    connection = Connection(address)
    checked = 0
    for key in list(rows)[::step]:
        flat = connection.call("HGETALL", key)
        found = dict(zip(flat[0::2], flat[1::2]))
        if found != rows[key]:
            sys.exit(f"flights: {key} is {found}, the file says {rows[key]}")
        checked += 1
    print(f"flights: {checked} rows on {address} equal their lines")


if __name__ == "__main__":
    main()
