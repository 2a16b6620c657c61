# SPDX-License-Identifier: BSD-3-Clause
"""Figures of bench/compare: medians, spread, ratios of pairs, and the goals."""
import statistics

# What identifies a measurement, apart from its side and its round.
KEYS = ("kind", "reading", "memory", "content", "vms", "size", "workload", "threads", "write")

# figure: (higher is better, unit, how it is called)
FIGURES = {
    "accesses_s": (True, "/s", "accesses"),
    "fault_p50_us": (False, "us", "fault p50"),
    "fault_p99_us": (False, "us", "fault p99"),
    "fault_p999_us": (False, "us", "fault p99.9"),
    "request_p50_us": (False, "us", "request p50"),
    "request_p99_us": (False, "us", "request p99"),
    "request_p999_us": (False, "us", "request p99.9"),
    "cpu_per_access_us": (False, "us", "CPU an access"),
    "total_bytes": (False, "bytes", "memory in all"),
    "faults_s": (True, "/s", "faults"),
    "helper_cpu_per_fault_us": (False, "us", "daemon's CPU a fault"),
    "evict_cpu_us": (False, "us", "CPU an eviction"),
    "parked_percent": (False, "%", "faults parked"),
}

# Goals: (workload, threads, figure, bound, at least?), for half of the memory and equal totals.
GOALS = [
    ("uniform", 1, "accesses_s", 1.5, True),
    ("uniform", 2, "accesses_s", 1.1, True),
    ("zipf", 1, "accesses_s", 1.1, True),
    ("zipf", 2, "accesses_s", 1.0, True),
    ("sequential", 1, "accesses_s", 2.0, True),
    ("sequential", 2, "accesses_s", 2.0, True),
    ("uniform", 1, "fault_p99_us", 1 / 5, False),
    ("uniform", 1, "fault_p999_us", 1 / 3, False),
    ("uniform", 2, "fault_p99_us", 1 / 5, False),
    ("uniform", 2, "fault_p999_us", 1 / 3, False),
    ("redis-get", 1, "accesses_s", 1.25, True),
    ("redis-set", 1, "accesses_s", 1.25, True),
    ("redis-get", 1, "request_p999_us", 1 / 3, False),
    ("redis-set", 1, "request_p999_us", 1 / 3, False),
]


def key_of(m):
    return tuple(m[k] for k in KEYS)


def spread(values):
    values = sorted(values)
    return {"median": statistics.median(values), "min": values[0], "max": values[-1],
            "rounds": len(values)}


def summary(measured):
    """[{key..., system, figure: {median, min, max, rounds}}] in the order of first appearance."""
    groups = {}
    for m in measured:
        groups.setdefault((key_of(m), m["system"]), []).append(m)
    out = []
    for (key, system), rows in groups.items():
        row = dict(zip(KEYS, key), system=system)
        for figure in FIGURES:
            values = [r[figure] for r in rows if r.get(figure) is not None]
            if values:
                row[figure] = spread(values)
        out.append(row)
    return out


def ratios(measured, against):
    """The same, of the quotients of each round's pair: a side over the side `against`."""
    base = {(key_of(m), m["round"]): m for m in measured if m["system"] == against}
    pairs = {}
    for m in measured:
        other = base.get((key_of(m), m["round"]))
        if not other or m["system"] == against:
            continue
        row = pairs.setdefault((key_of(m), m["system"]), {})
        for figure in FIGURES:
            if m.get(figure) is not None and other.get(figure):
                row.setdefault(figure, []).append(m[figure] / other[figure])
    return [dict(zip(KEYS, key), system=system, against=against,
                 **{figure: spread(values) for figure, values in row.items()})
            for (key, system), row in pairs.items()]


def goals(ratio_rows):
    """What was to be reached, and what was: only rows of half of the memory and equal totals."""
    out = []
    for row in ratio_rows:
        if row["memory"] != 50 or row["reading"] != "total" or row["against"] != "zram-lz4" \
                or row["system"].partition("@")[0] != "ebb":
            continue
        for workload, threads, figure, bound, at_least in GOALS:
            if (row["workload"], row["threads"]) != (workload, threads) or figure not in row:
                continue
            value = row[figure]["median"]
            out.append({"kind": row["kind"], "system": row["system"], "workload": workload,
                        "threads": threads, "write": row["write"], "figure": figure,
                        "goal": bound, "at_least": at_least, "ratio": row[figure],
                        "reached": value >= bound if at_least else value <= bound})
    return out
