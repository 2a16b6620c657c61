# SPDX-License-Identifier: BSD-3-Clause
"""A QEMU in a cell, with the Linux guest of the demo and the tests in it.

Its RAM is what each side can take memory from: anonymous memory where the kernel swaps, a memfd of
which libebb-attach.so tells the daemon on Ebb's side. QEMU itself is Debian's. The network is QEMU's
own, so that whoever asks the guest for something does so from outside of the cell.
"""
import functools
import os
import re
import subprocess
import sys
import tempfile

from machine import Refused, read

TESTS = os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../tests/guest")
sys.path.insert(0, TESTS)
from ebbguest import guest as guest_  # noqa: E402
from ebbguest.process import Child, Failure  # noqa: E402

START_WAIT = 300  # emulated, on a busy machine
OWN_MIB = 256  # of the guest's RAM: its kernel, its root file system, and room
CPUS = 2
QEMU = guest_.QEMU


class InCell(Child):
    """As a Child of the tests, but started by a cell, and ended with it."""

    def __init__(self, cell, name, argv, folder, env):
        self.name, self.log = name, os.path.join(folder, name + ".log")
        with open(self.log, "ab") as log:
            self.popen = cell.start(argv, env=env, heap=False, stdin=subprocess.DEVNULL,
                                    stdout=log, stderr=subprocess.STDOUT)


class Place:
    """What a Guest is made in: as a Scope of the tests, without its signals. cell: None outside."""

    def __init__(self, folder, cell=None):
        self.folder, self.cell = folder, cell

    def path(self, name):
        return os.path.join(self.folder, name)

    def spawn(self, name, argv, env):
        if self.cell:
            return InCell(self.cell, name, argv, self.folder, env)
        return Child(name, argv, self.folder, env)


@functools.lru_cache(maxsize=None)
def accelerator():
    """Asked once: a guest is booted to see whether KVM does it."""
    with tempfile.TemporaryDirectory(prefix="ebb-") as folder:
        return guest_.best_accelerator(Place(folder))[0]


class Vmm:
    def __init__(self, cell, data_bytes, folder):
        """A guest with room for so much, ready to be told what to do: self.guest."""
        mib = OWN_MIB + (data_bytes >> 20)
        ram = guest_.Ram("%dM" % mib, "memfd" if cell.shares else "anonymous")
        self.ram_bytes = mib << 20
        try:
            self.guest = guest_.Guest(Place(folder, cell), "compare", ram, cpus=CPUS,
                                      accel=accelerator())
            self.guest.wait_ready(START_WAIT)
        except Failure as e:
            raise Refused("no guest: %s" % e) from None

    @property
    def process(self):
        return self.guest.child.popen

    def resident(self):
        """Bytes of the guest's RAM that are in place: those of the mappings that are as large."""
        total, large = 0, False
        for line in read("/proc/%d/smaps" % self.guest.pid).splitlines():
            span = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
            if span:
                large = int(span.group(2), 16) - int(span.group(1), 16) >= self.ram_bytes
            elif large and line.startswith("Rss:"):
                total += int(line.split()[1]) << 10
        return total
