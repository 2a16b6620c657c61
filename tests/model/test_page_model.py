#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""test_page_model: spin looks at every state that page.pml can come to, in several small worlds.

None may show a violation; together they must take each edge of model/page_entry.c and no other one.
With a rule taken out a violation must be found: else the model does not see what it is for.
"""
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.realpath(__file__))
MODEL = os.path.join(HERE, "page.pml")
EDGES = os.path.join(os.environ["EBB_BUILD"], "tests/model/model_edges")

ONE = ["-DEVICTORS=1", "-DCRASHES=1", "-DWRITES=1"]
TWO = ["-DEVICTORS=2", "-DCRASHES=0", "-DWRITES=1"]
# What happens in each world beside eviction, faults, reads and writes.
WORLDS = {
    "a death at any step, and in the repair": ONE,
    "two evictors": TWO,
    "discards": ONE + ["-DDISCARDS"],
    "pins": ONE + ["-DPINS"],
    "pages that the VMM drops or finds": ONE + ["-DDROPS", "-DPINS"],
    "a store that loses content": ONE + ["-DLOSSES"],
    "discards of what is pinned or lost": ["-DEVICTORS=1", "-DCRASHES=0", "-DWRITES=1", "-DDISCARDS",
                                           "-DPINS", "-DLOSSES"],
    "huge pages are put together": ONE + ["-DCOLLAPSE"],
}
MUTATIONS = {
    "PROTECT": ("read without a write protection", ONE),
    "ACKNOWLEDGED": ("punched before the store is acknowledged", ONE),
    "AWAY": ("the away bit is not set before the punch", ONE),
    "FREE_FIRST": ("the copy is freed before the page is in place", ONE),
    "CANCEL": ("a cancelled eviction lifts its protection after it has let go", ONE),
    "WAKE": ("a takeover does not wake what waits", ONE),
    "CLAIM": ("an evictor goes on with another one's claim", TWO),
}


def run(argv, cwd):
    done = subprocess.run(argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    return done.returncode, done.stdout


def verify(defines):
    """Every state of the model with these defines: the edges taken, and the violation or None."""
    with tempfile.TemporaryDirectory() as folder:
        code, out = run(["spin", "-a"] + defines + [MODEL], folder)
        if code or not os.path.exists(os.path.join(folder, "pan.c")):
            sys.exit("spin: " + out)
        code, out = run(["gcc", "-O0", "-w", "-DSAFETY", "-DNOFAIR", "-o", "pan", "pan.c"], folder)
        if code:
            sys.exit("gcc: " + out)
        _, out = run(["./pan", "-m1000000", "-n"], folder)
    if "max search depth too small" in out or "errors:" not in out:
        sys.exit("the search was not complete:\n" + out[-2000:])
    wrong = re.search(r"^pan:1: (.*)", out, re.M)
    errors = int(re.search(r"errors: (\d+)", out).group(1))
    assert (errors > 0) == (wrong is not None), out[-2000:]
    states = re.search(r"(\S+) states, stored", out).group(1)
    return set(re.findall(r"^EDGE (\S+ \S+)", out, re.M)), wrong and wrong.group(1), states


def main():
    bad = 0
    _, listed = run([EDGES], HERE)
    legal = set(re.findall(r"^EDGE (\S+ \S+)", listed, re.M))
    numbers = dict(re.findall(r"^STATE (\S+) (\d+)", listed, re.M))
    with open(MODEL) as f:
        text = f.read()
    for name, number in numbers.items():
        if not re.search(r"^#define %s\s+%s$" % (name.upper(), number), text, re.M):
            print("page.pml has not the number of the state", name)
            bad = 1
    taken = set()
    for name, defines in WORLDS.items():
        edges, wrong, states = verify(defines)
        taken |= edges
        print("%-36s %8s states: %s" % (name, states, wrong or "holds"), flush=True)
        bad |= wrong is not None
    for edge in sorted(legal - taken):
        print("the model never goes from", edge.replace(" ", " to "))
    for edge in sorted(taken - legal):
        print("model/page_entry.c knows no way from", edge.replace(" ", " to "))
    bad |= taken != legal
    for name, (rule, defines) in MUTATIONS.items():
        _, wrong, _ = verify(defines + ["-DBREAK_" + name])
        print("%-60s %s" % (rule, "found" if wrong else "NOT FOUND"), flush=True)
        bad |= not wrong
    return int(bad)


sys.exit(main())
