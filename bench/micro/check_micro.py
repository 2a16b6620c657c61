#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Instructions of the pieces that every fault and eviction passes, against those that are kept.

  bench/micro/check_micro.py             prints them, and fails where one is above its limit
  bench/micro/check_micro.py --update    keeps today's, in bench/micro/counts.json

They are counted by callgrind (valgrind), for bench_micro of the build in EBB_BUILD, so they are the
same on a busy machine and on an idle one. They do depend on the compiler and on lz4: with others
than those that counts.json names, nothing is compared. Exit status 77 then.
"""
import argparse
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.realpath(__file__))
BUILD = os.environ.get("EBB_BUILD") or os.path.join(os.path.dirname(os.path.dirname(HERE)), "build")
KEPT = os.path.join(HERE, "counts.json")
PAGES = 2048  # as in bench_micro.c
TOLERANCE = 0.05
FEW = 3  # instructions, for the shortest sections
SKIP = 77


def versions():
    """What the counts depend on: compiler, its flags, lz4."""
    with open(os.path.join(BUILD, "CMakeCache.txt"), encoding="utf-8") as cache:
        entries = dict(re.findall(r"^(\w+):\w+=(.*)$", cache.read(), re.M))
    compiler = subprocess.run([entries["CMAKE_C_COMPILER"], "-dumpfullversion"], check=True,
                              stdout=subprocess.PIPE, text=True).stdout.strip()
    lz4 = subprocess.run(["pkg-config", "--modversion", "liblz4"], check=True,
                         stdout=subprocess.PIPE, text=True).stdout.strip()
    return {"compiler": os.path.basename(entries["CMAKE_C_COMPILER"]) + " " + compiler,
            "build": entries["CMAKE_BUILD_TYPE"], "lz4": lz4}


def count():
    """{section: instructions a page}"""
    with tempfile.TemporaryDirectory(prefix="ebb-micro-") as folder:
        out = os.path.join(folder, "callgrind.out")
        subprocess.run(["valgrind", "--tool=callgrind", "--collect-atstart=no", "-q",
                        "--callgrind-out-file=" + out, BUILD + "/bench/micro/bench_micro"],
                       check=True, env=dict(os.environ, EBB_BUILD=BUILD), stdin=subprocess.DEVNULL)
        found = {}
        for path in glob.glob(out + ".*"):
            with open(path, encoding="utf-8") as dump:
                text = dump.read()
            name = re.search(r"^desc: Trigger: Client Request: (\S+)$", text, re.M)
            total = re.search(r"^(?:summary|totals): (\d+)", text, re.M)
            if name and total:
                found[name.group(1)] = int(total.group(1)) / PAGES
    return found


def limit(kept):
    return max(kept * (1 + TOLERANCE), kept + FEW)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()

    now, counts = versions(), count()
    if not counts:
        print("callgrind has counted nothing")
        return 1
    if options.update:
        with open(KEPT, "w", encoding="ascii") as f:
            json.dump({"with": now, "instructions": {k: round(counts[k], 1)
                                                     for k in sorted(counts)}}, f, indent=1)
            f.write("\n")
        return 0
    with open(KEPT, encoding="ascii") as f:
        kept = json.load(f)
    same = kept["with"] == now
    failed = same and set(counts) != set(kept["instructions"])
    print("%-14s %12s %12s   instructions a page" % ("", "now", "kept"))
    for name in sorted(set(counts) | set(kept["instructions"])):
        have, want = counts.get(name), kept["instructions"].get(name)
        word = ""
        if have is None or want is None:
            word = "not kept: --update" if want is None else "not counted"
        elif have > limit(want):
            word = "MORE" if same else "more"
            failed = failed or same
        elif have < want * (1 - TOLERANCE):
            word = "less: --update keeps it"
        print("%-14s %12s %12s   %s" % (name, *("-" if v is None else "%.1f" % v
                                              for v in (have, want)), word))
    if not same:
        print("skipped: counted with %s, kept with %s; runs in scripts/check on Debian 12"
              % (now, kept["with"]))
        return SKIP
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
