#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""ebb-sim on the command line: generate, info, replay; what it refuses."""

import json
import os
import subprocess
import sys
import tempfile

SIM = os.path.join(os.environ["EBB_BUILD"], "ebb-sim")


def sim(*args, status=0):
    p = subprocess.run([SIM, *args], capture_output=True, text=True, check=False)
    assert p.returncode == status, (args, p.returncode, p.stdout, p.stderr)
    return p


def test_random_loads_are_left_alone(folder):
    """At half of the memory no prefetcher makes them more than 2 % slower."""
    policies = ["null", "sequential", "trend", "elastic", "correlation"]
    for kind in "uniform", "zipf", "hotspot":
        trace = "file=" + os.path.join(folder, kind)
        sim("generate", kind, trace, "units=8192", "accesses=100000")
        rows = json.loads(sim("--json", "replay", trace, "limit=50%", "reclaim=clock",
                              *["prefetch=" + p for p in policies]).stdout)
        rows = {r["prefetch"]: r for r in rows if r["prefetch"]}
        null = rows["null"]
        assert len(rows) == len(policies) and null["misses"] > 1000, rows
        for name, row in rows.items():
            assert row["slowdown"] + 1 <= 1.02 * (null["slowdown"] + 1), (kind, name, row)


def main():
    with tempfile.TemporaryDirectory() as folder:
        trace = "file=" + os.path.join(folder, "trace")
        sim("generate", "zipf", trace, "units=2000", "accesses=50000", "threads=3")
        info = json.loads(sim("--json", "info", trace).stdout)
        assert info["units"] == 2000 and info["accesses"] == 52000, info
        rows = json.loads(sim("--json", "replay", trace, "limit=50%", "limit=4M",
                              "reclaim=clock", "reclaim=clock,distance=50",
                              "prefetch=null", "prefetch=sequential,max=16").stdout)
        assert len(rows) == 2 * (3 + 2 * 2), rows
        optimum = [r for r in rows if r["reclaim"] == "(optimum)"]
        assert [r["limit-units"] for r in optimum] == [1000, 1024]
        for row in rows:
            assert row["misses-to-optimum"] >= 1, row
        text = sim("replay", trace).stdout
        assert "(lru)" in text and "clock" in text and "null" in text
        # Any shared object by its path.
        so = os.path.join(os.environ["EBB_BUILD"], "policies", "example.so")
        assert "example" in sim("replay", trace, "reclaim=" + so).stdout
        # The same each time.
        assert text == sim("replay", trace).stdout

        test_random_loads_are_left_alone(folder)

        assert "ebb-sim" in sim("--help").stdout
        sim(status=2)
        sim("replay", status=2)
        sim("replay", trace, "limit=0", status=2)
        sim("replay", trace, "colour=red", status=2)
        sim("generate", "zipf", trace, "units=x", status=2)
        assert "nosuch" in sim("replay", trace, "reclaim=nosuch", status=1).stderr
        assert "colour" in sim("replay", trace, "reclaim=clock,colour=red", status=1).stderr
        sim("generate", "fancy", trace, status=1)
        with open(os.path.join(folder, "bad"), "wb") as f:
            f.write(b"x" * 1000)
        assert "no trace" in sim("info", "file=" + f.name, status=1).stderr


if __name__ == "__main__":
    sys.exit(main())
