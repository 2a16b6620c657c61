# SPDX-License-Identifier: BSD-3-Clause
"""compare --equal-slowdown: how much memory each side saves while a program stays nearly as fast.

A side's program and one without any limit are there at the same time, and are asked in turn, in many
short runs: what else the machine does takes from both. From all of its memory down, in steps, the
side's limit is lowered until the program is clearly slower than it may be (as TMO does, which asks
for pressure). The speed at a step is the upper quartile of its runs (what else runs only ever slows
a run down), with phases the mean over whole phases. Through the steps goes the line that falls and
lies closest to them (isotonic regression); where it crosses the bound is the memory that is needed.
What is saved is what the program without a limit takes less what the side takes in all, its pool,
stores, tables and daemon with it.
"""
import random
import statistics
import time

import figures
import server
import systems
import workload
from machine import Refused

STEP, LEAST_MEMORY = 5, 10  # per cent
PAIRS = 20  # by default
SETTLE = 30  # runs: until what is used has been told from what is not
PHASES = 2
TRIES = 3
AGAIN = 200  # resamplings for the error of a step
MB = 1 << 20


def program(name, cell, size, folder):
    """-> (what runs, the name of the workload)"""
    if name in server.KINDS:
        return server.KINDS[name](cell, size, folder), name.partition("-")[0] + "-zipf"
    return workload.Load(cell, size, "small", "heap", folder), name


def ratio_of(pairs, whole):
    """How fast the first of each pair is, in proportion to the second."""
    if whole:
        return sum(p[0] for p in pairs) / sum(p[1] for p in pairs)
    own, other = (statistics.quantiles(speeds, n=4)[2] for speeds in zip(*pairs))
    return own / other


class Step:
    """A limit, and what came of it."""

    def __init__(self, percent, pairs, whole, total):
        self.percent, self.total, self.pairs = percent, total, len(pairs)
        self.ratio = ratio_of(pairs, whole)
        draw = random.Random(1)
        self.error = statistics.stdev(ratio_of(draw.choices(pairs, k=len(pairs)), whole)
                                      for _ in range(AGAIN))


def falling(steps):
    """[ratio] of the steps, none above the one before: the closest to theirs (isotonic regression
    by pooling adjacent violators: Barlow et al., Statistical Inference under Order Restrictions)."""
    pools = []  # [sum of weighted ratios, sum of weights, steps]
    for s in steps:
        weight = 1 / max(s.error, 0.002) ** 2
        pools.append([s.ratio * weight, weight, 1])
        while len(pools) > 1 and pools[-1][0] / pools[-1][1] > pools[-2][0] / pools[-2][1]:
            last = pools.pop()
            pools[-1] = [x + y for x, y in zip(pools[-1], last)]
    return [p[0] / p[1] for p in pools for _ in range(p[2])]


def needed(steps, bound):
    """Bytes in all where the falling line crosses the bound; None: it is below from the start."""
    line = falling(steps)
    if line[0] < bound:
        return None
    for n in range(1, len(steps)):
        if line[n] < bound:
            part = (line[n - 1] - bound) / (line[n - 1] - line[n])
            return steps[n - 1].total + part * (steps[n].total - steps[n - 1].total)
    return steps[-1].total


class Search:
    """One side beside a program without a limit."""

    def __init__(self, o, name, reference, cell, folders):
        self.o, self.cell, self.name = o, cell, name
        self.bound = 1 - o.equal_slowdown / 100
        size = o.size[0]
        self.reference, self.workload = program(name, reference, size, folders[0])
        self.reference.fill()
        base = cell.usage()
        self.own, _ = program(name, cell, size, folders[1])
        cell.program = self.own
        self.own.fill()
        cell.attached(1)
        self.size = self.own.size
        self.base = max(base, cell.usage() - self.size)
        self.unlimited = reference.usage()
        self.phase_s = (float(self.workload.partition(":")[2] or 0.5)
                        if self.workload.startswith("phase") else 0)

    def run(self, what, seconds):
        """Requests a second."""
        f = what.run(self.workload, self.o.threads[0], self.o.writes[0], 0, seconds)
        if f["wrong"]:
            raise Refused("%s: %d wrong accesses" % (self.workload, f["wrong"]))
        return f["accesses_s"]

    def limit(self, percent):
        resident = int(self.size * percent / 100)
        self.cell.limit(resident + (0 if self.cell.system in systems.EBB else self.base))

    def look(self, percent):
        """Sets a limit, lets the side come to it, and measures."""
        if percent < 100:
            self.limit(percent)
        self.run(self.own, SETTLE * self.o.seconds)
        pairs, end = [], time.monotonic() + PHASES * self.phase_s
        while len(pairs) < self.o.pairs or time.monotonic() < end:
            speed = {}
            for what in (self.own, self.reference)[::1 if len(pairs) % 2 else -1]:
                speed[what] = self.run(what, self.o.seconds)
            pairs.append((speed[self.own], speed[self.reference]))
        step = Step(percent, pairs, self.phase_s > 0, self.cell.usage())
        print("    %5.1f %% resident: %.3f +- %.3f of full speed, %.1f MiB in all"
              % (percent, step.ratio, step.error, step.total / MB), flush=True)
        return step

    def search(self):
        steps = [self.look(100)]
        while steps[-1].percent - self.o.step >= LEAST_MEMORY and \
                steps[-1].ratio + 2 * steps[-1].error > self.bound:
            steps.append(self.look(steps[-1].percent - self.o.step))
        if self.own.wrong():
            raise Refused("wrong content at the end")
        need = needed(steps, self.bound)
        return {"saved_bytes": 0 if need is None else max(self.unlimited - need, 0),
                "unlimited_bytes": self.unlimited, "full_ratio": steps[0].ratio,
                "steps": [vars(s) for s in steps]}


def sides(o):
    """[(system, policy or None)]"""
    out = []
    for system in o.systems:
        if system in systems.UNLIMITED:
            continue
        ebb = system.partition("@")[0] in systems.EBB
        out += [(system, policy) for policy in (o.policy if ebb else [None])]
    return out


def side_name(system, policy):
    return "%s:%s" % (system, policy) if policy else system


def set_policy(cell, policy):
    reclaim, _, prefetch = policy.partition("+")
    cell.policy("reclaim", reclaim)
    if prefetch:
        cell.policy("prefetch", prefetch)


def one(o, machine, folders, name, system, policy):
    size = o.size[0]
    most = 2 * size if name in server.KINDS else size + 8 * MB
    with systems.cell(machine, o.builds, "none", "small", most, folders[0]) as reference, \
            systems.cell(machine, o.builds, system, "small", most, folders[1]) as cell:
        search = Search(o, name, reference, cell, folders)
        if policy:
            set_policy(cell, policy)
        return search.search()


def tried(o, machine, folders, name, system, policy):
    """The kernel ends a program now and then, as out of memory in its cgroup."""
    for last in range(TRIES):
        try:
            return one(o, machine, folders, name, system, policy)
        except Refused as e:
            if "ended" not in str(e) or last == TRIES - 1:
                raise
            print("    again: %s" % e, flush=True)
    return None


def run(o, machine, folders, workloads):
    """[{workload, side, round, saved_bytes...}]"""
    found = []
    for n in range(o.rounds):
        for name in workloads:
            order = sides(o)
            for system, policy in order if n % 2 == 0 else reversed(order):
                side = side_name(system, policy)
                print("round %d, %s under %s" % (n + 1, name, side), flush=True)
                f = tried(o, machine, folders, name, system, policy)
                found.append(dict(f, workload=name, side=side, system=system, round=n))
                print("    saves %.1f of %.1f MiB" % (f["saved_bytes"] / MB,
                                                     f["unlimited_bytes"] / MB), flush=True)
    return found


def summary(found, against):
    """[{workload, side, saved: spread, of_percent, ratio: spread or None}], best side first."""
    out = []
    for name in dict.fromkeys(f["workload"] for f in found):
        rows = []
        for side in dict.fromkeys(f["side"] for f in found if f["workload"] == name):
            mine = [f for f in found if (f["workload"], f["side"]) == (name, side)]
            base = {f["round"]: f["saved_bytes"] for f in found
                    if (f["workload"], f["side"]) == (name, against)}
            ratios = [f["saved_bytes"] / base[f["round"]] for f in mine
                      if side != against and base.get(f["round"])]
            rows.append({"workload": name, "side": side,
                         "saved": figures.spread([f["saved_bytes"] for f in mine]),
                         "unlimited": statistics.median(f["unlimited_bytes"] for f in mine),
                         "full": statistics.median(f["full_ratio"] for f in mine),
                         "ratio": figures.spread(ratios) if ratios else None})
        out += sorted(rows, key=lambda r: -r["saved"]["median"])
    return out


def show(rows, o):
    print("\nmemory saved at %g %% slowdown, in all; medians (range)" % o.equal_slowdown)
    print("%-16s %-24s %-28s %-8s %s" % ("workload", "side", "saved, MiB", "no limit",
                                         "ratio to " + o.against))
    for r in rows:
        s, q = r["saved"], r["ratio"]
        print("%-16s %-24s %-28s %-8s %s" % (
            r["workload"], r["side"], "%.1f (%.1f-%.1f), %.1f %%" % (
                s["median"] / MB, s["min"] / MB, s["max"] / MB,
                100 * s["median"] / r["unlimited"]), "%.3f" % r["full"],
            "%.2f (%.2f-%.2f)" % (q["median"], q["min"], q["max"]) if q else "-"))
    for name in dict.fromkeys(r["workload"] for r in rows):
        ebb = [r for r in rows if r["workload"] == name and r["side"].startswith("ebb")]
        base = [r for r in rows if r["workload"] == name and r["side"] == o.against]
        if ebb and base:
            print("%s: best of Ebb is %s" % (name, ebb[0]["side"]) + (
                ", %.2f times what %s saves (goal 1.1)" % (
                    ebb[0]["ratio"]["median"], o.against) if ebb[0]["ratio"] else
                "; %s saves nothing" % o.against))
