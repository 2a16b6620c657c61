#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The demo: a Linux guest in an unmodified QEMU loses half of its memory and keeps running.

QEMU boots Debian's kernel; Redis in the guest is filled and checked; the VM's limit is set to half
of what it uses, and load goes on; ebbd is killed under the load, another one takes over, and is
itself replaced by an upgrade; at the end every byte of every value is compared with what it must be. Nothing is left behind, also after
Ctrl-C. Started by scripts/demo, which installs what is missing.

Theory of operation
  A demo is a list of phases, run in order. A phase is a method of Demo: it shows its progress
  through self.display, and what it returns is printed as its result. What phases know of each
  other is in self.result. A new thing to show is one more method in PHASES, before the final check. All that is started is ended by the Scope.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time

from ebbguest.display import Display
from ebbguest.ebb import MIB, Ebb, Sampler, build_folder, figure
from ebbguest.guest import SOURCE, Guest, Ram, best_accelerator, image_folder
from ebbguest.process import Failure, Scope
from ebbguest.redis import Load, Redis

VM = "demo"
SETTLED = 1.02 # resident memory may be this much over the limit while load goes on


class Demo:
    def __init__(self, scope, options):
        self.scope, self.options = scope, options
        self.display = Display(len(self.PHASES))
        self.ebb = self.guest = self.redis = self.sampler = None
        self.result = {}

    def run(self):
        try:
            for title, phase in self.PHASES:
                self.display.phase(title)
                self.display.end(phase(self) or "")
        finally:
            self.display.close()
            if self.sampler:
                self.sampler.stop()
        return self.report()

    # --- phases -----------------------------------------------------------------------------

    def build(self):
        folder = build_folder()
        if not os.path.exists(folder + "/build.ninja"):
            self._command("cmake", "--preset", "release")
        targets = self._command("ninja", "-C", folder, "-t", "targets", "all")
        plugins = re.findall(r"^((?:policies|backends)/[\w-]+\.so):", targets, re.M)
        self._command("ninja", "-C", folder, "ebbd", "ebbctl", "libebb-attach.so", *plugins)
        return "in " + os.path.relpath(folder)

    def _command(self, *argv):
        """Runs a build command; "[3/120]" in its output is the progress."""
        child = subprocess.Popen(argv, cwd=SOURCE, stdin=subprocess.DEVNULL, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.scope.defer(child.wait)
        self.scope.defer(child.terminate)
        output = []
        for line in child.stdout:
            output.append(line)
            steps = re.match(r"\[(\d+)/(\d+)\]", line)
            if steps:
                self.display.progress(int(steps.group(1)), int(steps.group(2)))
        if child.wait():
            raise Failure("%s failed:\n%s" % (" ".join(argv[:3]), "".join(output[-30:])))
        return "".join(output)

    def fetch(self):
        with open(image_folder() + "/guest.json") as f:
            return "Linux " + json.load(f)["kernel"]

    def daemon(self):
        self.ebb = Ebb(self.scope)
        self.ebb.start()
        host = self.ebb.ctl("query-host")
        return "folio probe %s" % ("loaded" if host.get("probe") else
                                   "not available: " + host.get("probe-reason", ""))

    def boot(self):
        accel, why = self.options.accel, "asked for"
        if accel == "auto":
            accel, why = best_accelerator(self.scope)
        self.guest = Guest(self.scope, VM, Ram(self.options.memory), accel=accel, attach="plugin",
                           ebb=self.ebb)
        self.guest.wait_ready()
        self.ebb.wait_attached(VM, child=self.guest.child)
        self.sampler = Sampler(self.ebb, VM)
        self.display.live = self.sampler.text
        return "%s (%s)" % (accel.upper(), why)

    def fill(self):
        self.redis = Redis(self.guest, self.options.data)
        self.redis.start()
        start = time.monotonic()
        self.redis.fill(self.display.progress)
        return "%d values of %d KiB, %d MB/s" % (
            self.redis.count, self.redis.value_bytes >> 10,
            self.redis.total_bytes / 1e6 / (time.monotonic() - start))

    def load_before(self):
        return self._load("ops-before", self.options.seconds / 3)

    def _load(self, name, seconds):
        start = time.monotonic()
        operations = self.redis.load(seconds, self.display.progress)
        self.result[name] = operations / (time.monotonic() - start)
        if self.redis.wrong:
            raise Failure("%d wrong bytes under load" % self.redis.wrong)
        return "%d operations/s, every answer right" % self.result[name]

    def halve(self):
        self.result["before"] = self.guest.ram_taken_bytes()
        limit = self.ebb.vm(VM)["resident-bytes"] // 2 & -4096
        self.result["limit"] = limit
        self.ebb.limit(VM, limit)
        self.redis.load(60, until=lambda: self._settling(limit))
        figures = self.ebb.wait_resident(VM, limit * SETTLED, timeout=10)
        self.result["after"] = self.guest.ram_taken_bytes()
        return "%d MiB resident, limit %d MiB" % (figures["resident-bytes"] // MIB, limit // MIB)

    def _settling(self, limit):
        """Shows how far eviction is; true when the limit is reached."""
        last = self.sampler.last
        resident = last["resident-bytes"] if last else 2 * limit
        self.display.progress(max(0, 2 * limit - resident), limit)
        return resident <= limit

    def load_under_limit(self):
        return self._load("ops-under-limit", self.options.seconds)

    def kill(self):
        """The daemon dies under load, with the guest's memory in its hands, and another comes."""
        with Load(self.redis) as load:
            load.wait_answers(50, "answers before the kill")
            before = self.ebb.vm(VM)
            self.result["first"] = before # the successor counts from 0
            self.ebb.kill()
            start = time.monotonic()
            self.ebb.start()
            self.ebb.wait_attached(VM, child=self.guest.child)
            took = time.monotonic() - start
            load.wait_answers(100, "answers after the kill")
            after = self.ebb.vm(VM)
        if self.redis.wrong or after["pages-lost"]:
            raise Failure("%d wrong bytes and %d lost pages after the kill" % (
                self.redis.wrong, after["pages-lost"]))
        return "taken over in %.1f s, %d MiB evicted, nothing lost" % (
            took, before["evicted-bytes"] // MIB)

    def upgrade(self):
        """A new daemon takes over from the living one, under load."""
        with Load(self.redis) as load:
            load.wait_answers(50, "answers before the upgrade")
            done = self.ebb.upgrade()
            load.wait_answers(100, "answers after the upgrade")
            after = self.ebb.vm(VM)
        if self.redis.wrong or after["pages-lost"]:
            raise Failure("%d wrong bytes and %d lost pages after the upgrade" % (
                self.redis.wrong, after["pages-lost"]))
        return "process %d goes on; no fault was served for %.1f ms" % (
            done["pid"], done["paused-us"] / 1000)

    def verify(self):
        start = time.monotonic()
        wrong = self.redis.verify(self.display.progress)
        return "%d wrong bytes, %d MB/s" % (
            wrong, self.redis.total_bytes / 1e6 / (time.monotonic() - start))

    PHASES = [
        ("Building Ebb", build),
        ("Fetching Debian's kernel and Redis", fetch),
        ("Starting ebbd", daemon),
        ("Booting the guest in QEMU, attached", boot),
        ("Filling Redis in the guest", fill),
        ("Checking every value", verify),
        ("Load with all of its memory", load_before),
        ("Limit: half of what it uses; load goes on", halve),
        ("Load with half of its memory", load_under_limit),
        ("Killing ebbd under load, starting another", kill),
        ("Upgrading ebbd under load", upgrade),
        ("Checking every value", verify),
    ]

    # --- what came of it --------------------------------------------------------------------

    def report(self):
        figures, r = self.ebb.vm(VM), self.result
        latency = figures["fault-latency-us"]
        taken = self.guest.ram_taken_bytes()
        net = r["before"] - taken - figures["stored-bytes"] - figures["overhead-bytes"]
        rows = [
            ("guest RAM in host memory, before", "%d MiB" % (r["before"] // MIB)),
            ("guest RAM in host memory, now", "%d MiB (limit %d MiB)" % (
                taken // MIB, r["limit"] // MIB)),
            ("evicted", "%d MiB" % (figures["evicted-bytes"] // MIB)),
            ("stored in", "%d MiB (ratio %.2f)" % (
                figures["stored-bytes"] // MIB,
                figures["evicted-bytes"] / max(1, figures["stored-bytes"]))),
            ("daemon's overhead", "%.1f MiB" % (figures["overhead-bytes"] / MIB)),
            ("saved, net of store and overhead", "%d MiB (%d %%)" % (
                net // MIB, 100 * net // r["before"])),
            ("faults that brought stored memory back", "%d" % (
                r["first"]["faults"] + figures["faults"])),
            ("cost of a fault since the kill", "p50 %s us, p99 %s us, max %s us" % (
                figure(latency["p50"]), figure(latency["p99"]), figure(latency["max"]))),
            ("evictions / cancelled by a write", "%d / %d" % (
                r["first"]["evictions"] + figures["evictions"],
                r["first"]["evictions-cancelled"] + figures["evictions-cancelled"])),
            ("Redis operations/s, before / under limit", "%d / %d" % (
                r["ops-before"], r["ops-under-limit"])),
            ("bytes compared", "%d MiB" % (self.redis.checked // MIB)),
            ("wrong bytes", "%d" % self.redis.wrong),
            ("pages lost", "%d" % figures["pages-lost"]),
        ]
        print()
        for name, value in rows:
            print("  %-42s %s" % (name, value))
        print()
        return self.verdict(figures, taken)

    def verdict(self, figures, taken):
        problems = []
        if self.redis.wrong or figures["pages-lost"]:
            problems.append("the guest's memory was damaged")
        if taken > self.result["limit"] * 1.1:
            problems.append("the limit was not kept: %d MiB are resident" % (taken // MIB))
        if not figures["faults"]:
            problems.append("nothing was brought back: the demo has shown nothing")
        if not self.guest.child.running():
            problems.append("QEMU has ended")
        for p in problems:
            print("FAILED: " + p)
        if not problems:
            print("The guest ran on with half of its memory, and when ebbd was killed and "
                  "upgraded; every byte was as it must be.")
        return 1 if problems else 0


def options():
    p = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.split("\n\n")[0])
    p.add_argument("--memory", default="1G", help="the guest's RAM (default 1G)")
    p.add_argument("--data", type=int, default=300, metavar="MIB",
                   help="Redis' data (default 300)")
    p.add_argument("--seconds", type=float, default=30, help="load under the limit (default 30)")
    p.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto",
                   help="auto: KVM where it runs a 64-bit guest, else TCG")
    p.add_argument("--keep", action="store_true", help="leave the logs (their folder is named)")
    return p.parse_args()


def main():
    start, scope = time.monotonic(), None
    opts = options()
    try:
        with Scope(keep=opts.keep) as scope:
            if opts.keep:
                print("logs: " + scope.folder)
            status = Demo(scope, opts).run()
    except KeyboardInterrupt:
        print("\nInterrupted. Everything that was started is stopped and removed.")
        return 130
    except (Failure, OSError) as e:
        print("\nscripts/demo: %s" % e, file=sys.stderr)
        return 1
    print("%d s; everything that was started is stopped and removed." % (time.monotonic() - start))
    return status


if __name__ == "__main__":
    sys.exit(main())
