"""What the memory of each node did in a soak, as figures of the bench.

Usage: soak_figures.py CURVE SECONDS FIGURES: appends to the lines of FIGURES. A node's growth is
its mean memory in the last third of the run by that in the second third; the first one warms up.
"""

import csv
import json
import statistics
import sys


def main():
    curve, seconds, figures = sys.argv[1:]
    with open(curve, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    third = len(rows) // 3
    if third == 0:
        sys.exit(f"{curve}: too few samples")
    with open(figures, "a", encoding="utf-8") as file:
        for column in (name for name in rows[0] if name.startswith("memory_mib_")):
            number = int(column.removeprefix("memory_mib_"))
            node = "primary" if number == 0 else f"replica {number}"
            values = [float(row[column]) for row in rows]
            before, last = statistics.fmean(values[third:2 * third]), values[2 * third:]
            name = f"{seconds} s, {node}"
            put(file, f"{name}: growth of memory", "x", [value / before for value in last])
            put(file, f"{name}: memory", "MiB", last)


def put(file, figure, unit, values):
    settings = {
        "durability": "O_DSYNC on the primary and one replica",
        "counted": "mean of the last third of the run, resident without what files share",
    }
    line = {
        "scenario": "soak",
        "figure": figure,
        "value": statistics.fmean(values),
        "unit": unit,
        "runs": 1,
        "min": min(values),
        "max": max(values),
        "limit": None,
        "limit_name": None,
        "ratio_to_limit": None,
        "settings": settings,
    }
    file.write(json.dumps(line) + "\n")


main()
