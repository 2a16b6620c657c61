#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""bench/compare works, and leaves the machine as it was, however it ends."""
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, HERE)
import machine  # noqa: E402

COMPARE = os.path.join(HERE, "compare")
DEADLINE = 500  # against hanging only


def wait_for(condition, what):
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("did not happen: " + what)
        time.sleep(0.05)


def text_of(path):
    try:
        return machine.read(path)
    except OSError:
        return None


def state():
    """Everything that compare changes."""
    files = glob.glob("/sys/block/zram*/disksize") + glob.glob("/sys/block/zram*/comp_algorithm")
    files += glob.glob("/sys/module/zswap/parameters/*")
    files += ["/proc/sys/vm/nr_hugepages", "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
              "/proc/swaps"]
    where, _ = machine.controller()
    return {path: text_of(path) for path in files}, glob.glob(where + "/ebb-compare.*")


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory(prefix="ebb-test-compare-", dir="/var/tmp")
        self.env = dict(os.environ, EBB_COMPARE_JOURNAL=self.dir.name + "/journal")
        self.addCleanup(self.dir.cleanup)

    def json_of(self, *args, out="out.json"):
        """-> (what it wrote, what it said)"""
        out = self.dir.name + "/" + out
        p = self.start("--json", out, *args)
        said = p.communicate(timeout=DEADLINE)[0]
        self.assertEqual(p.returncode, 0, said)
        with open(out, encoding="ascii") as f:
            return json.load(f), said

    def equal_slowdown(self, step, percents, *args):
        """Nothing is too slow, so that every step is taken."""
        result, said = self.json_of("--equal-slowdown", "100", "--step", step, "--seconds", "0.01",
                                    "--pairs", "4", *args)
        for f in result["measured"]:
            self.assertEqual([s["percent"] for s in f["steps"]], percents, said)
            self.assertLess(f["steps"][-1]["total"], f["steps"][0]["total"], said)
        return {(r["workload"], r["side"]): r for r in result["rows"]}, said

    def start(self, *args):
        p = subprocess.Popen([COMPARE, "--folder", self.dir.name, "--size", "32M", "--rounds", "1",
                              "--kinds", "small", "--readings", "resident", "--memory", "50",
                              "--writes", "50", *args], env=self.env, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.addCleanup(p.stdout.close)
        return p


class Runs(Case):
    def test_figures(self):
        out = self.dir.name + "/out.html"
        result, said = self.json_of("--systems", "shared,ebb", "--seconds", "0.2", "--threads", "1", "--workloads",
                       "uniform,zipf,hotspot,sequential,strided,phase,pmbench,gups",
                       "--servers", "redis,memcached", "--html", out)
        self.assertEqual(result["left_out"], {}, said)
        self.assertEqual(len(result["measured"]), 2 * (8 + 3 + 1), said)
        for m in result["measured"]:
            self.assertGreater(m["accesses"], 0, m["workload"])
            self.assertEqual(m["wrong"], 0)
            if m["system"] == "ebb":
                self.assertLess(m["resident_bytes"], 20 << 20)
        for content in ("heap", "redis", "memcached"):
            faulted = sum(m["counters"]["faults"] for m in result["measured"]
                          if m["system"] == "ebb" and m["content"] == content)
            self.assertGreater(faulted, 0, content + ": nothing was evicted")
        with open(out, encoding="utf-8") as f:
            page = f.read()
        self.assertIn("<svg", page)
        self.assertNotIn("http", page.replace("http-equiv", ""))
        self.joined(result)

    def joined(self, result):
        """A run's JSON twice: two rounds of the same, whose ratios are as wide as one's."""
        one = self.dir.name + "/out.json"
        both, said = self.json_of("--join", one + "," + one, out="both.json")
        self.assertEqual(len(both["measured"]), 2 * len(result["measured"]), said)
        self.assertEqual({r["accesses_s"]["rounds"] for r in both["summary"]}, {2}, said)

    def test_tiers(self):
        result, said = self.json_of("--systems", "ebb-tiers", "--seconds", "0.2", "--threads", "1",
                                    "--workloads", "uniform", "--servers", "")
        self.assertEqual(result["left_out"], {}, said)
        m = result["measured"][0]
        self.assertGreater(m["counters"]["faults"], 0, said)
        # Three tenths of the half that the limit leaves.
        self.assertLess(m["resident_bytes"], 8 << 20, said)

    def test_equal_slowdown(self):
        rows, said = self.equal_slowdown("45", [100, 55, 10], "--systems", "ebb", "--policy", "temperature+null",
                                         "--workloads", "keyvalue,phase:0.05", "--servers",
                                         "redis,memcached-zipf")
        self.assertEqual(set(rows), {(w, "ebb:temperature+null") for w in (
            "keyvalue", "phase:0.05", "redis", "memcached-zipf")}, said)


class Restores(Case):
    """With swap on: a second or so each."""

    def setUp(self):
        super().setUp()
        self.before = state()

    def started(self):
        p = self.start("--systems", "zram-lz4,swap", "--seconds", "300", "--workloads", "uniform",
                       "--threads", "1")
        wait_for(lambda: machine.swaps() or p.poll() is not None, "swap")
        if p.poll() is not None:
            raise AssertionError(p.stdout.read())
        self.assertNotEqual(state(), self.before)
        return p

    def keeper(self, p):
        children = machine.read("/proc/%d/task/%d/children" % (p.pid, p.pid)).split()
        return int(children[0])

    def same(self):
        wait_for(lambda: not os.path.exists(self.env["EBB_COMPARE_JOURNAL"]), "journal gone")
        self.assertEqual(state(), self.before)

    def ends_by(self, number):
        p = self.started()
        p.send_signal(number)
        p.communicate(timeout=DEADLINE)
        wait_for(lambda: state() == self.before, "all as it was")
        self.same()
        return p.returncode

    def test_interrupt(self):
        self.assertEqual(self.ends_by(signal.SIGINT), 130)

    def test_terminate(self):
        self.assertEqual(self.ends_by(signal.SIGTERM), 130)

    def test_kill(self):
        self.assertEqual(self.ends_by(signal.SIGKILL), -signal.SIGKILL)

    def test_kill_of_the_keeper(self):
        p = self.started()
        os.kill(self.keeper(p), signal.SIGKILL)
        p.kill()
        p.communicate(timeout=DEADLINE)
        self.assertNotEqual(state(), self.before)
        subprocess.run([COMPARE, "--restore"], env=self.env, check=True, timeout=DEADLINE)
        self.same()

    def test_equal_slowdown(self):
        # With less the kernel may end the program.
        rows, said = self.equal_slowdown("55", [100, 45], "--systems", "zram-lz4,ebb", "--policy", "clock",
                                         "--workloads", "keyvalue", "--servers", "")
        self.assertEqual(rows["keyvalue", "ebb:clock"]["ratio"]["rounds"], 1, said)
        self.assertIn("best of Ebb is ebb:clock", said)
        self.same()

    def test_error(self):
        """A side that fails halfway: the zram device is set up, mkswap is not there."""
        self.env["PATH"] = self.dir.name
        os.symlink("/usr/bin/python3", self.dir.name + "/python3")
        p = self.start("--systems", "zram-lz4", "--seconds", "1", "--workloads", "uniform")
        said = p.communicate(timeout=DEADLINE)[0]
        self.assertIn("left out", said)
        self.same()


def why_not(which):
    if os.geteuid():
        return "needs root"
    if which != "restores":
        return None
    try:
        machine.controller()
    except machine.Refused as e:
        return str(e)
    if machine.swaps():
        return "this machine swaps"
    if not os.path.exists(machine.ZRAM_CONTROL) and \
            subprocess.run(["modprobe", "-qn", "zram"], check=False).returncode:
        return "no zram"
    return None


if __name__ == "__main__":
    WHICH = sys.argv.pop(1)
    WHY = why_not(WHICH)
    if WHY:
        print("skipped: %s; runs as root on a machine with zram and without swap" % WHY)
        sys.exit(77)
    unittest.main(defaultTest={"runs": "Runs", "restores": "Restores"}[WHICH], verbosity=2)
