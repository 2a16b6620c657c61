#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A daemon that comes after the VM, goes, and comes again: QEMU starts and runs without one, the
library attaches when one appears, and a daemon that drains leaves the guest whole."""
import sys

from ebbguest.ebb import Ebb
from ebbguest.guest import Guest, Ram
from ebbguest.process import Scope, wait_for
from ebbguest.testing import expect, expect_sound, main, squeeze, step

VM = "late"
CHECK = "guest-mem check /dev/shm/keep 200 11"


def run():
    with Scope() as scope:
        ebb = Ebb(scope)
        guest = Guest(scope, VM, Ram("512M"), attach="preload", ebb=ebb)
        guest.wait_ready() # there is no daemon, and nobody waited for one
        guest.check("guest-mem fill /dev/shm/keep 200 11")
        step("the daemon comes")
        ebb.start()
        ebb.wait_attached(VM, child=guest.child)
        squeeze(ebb, VM)
        guest.check(CHECK)
        guest.check("guest-mem loop /dev/shm/keep 200 11 4")
        expect_sound(ebb, VM)
        squeeze(ebb, VM)
        step("the daemon drains and ends")
        ebb.ctl("quit", "drain=true")
        wait_for(lambda: not ebb.child.running(), "ebbd's end", 30)
        guest.check(CHECK)
        step("another daemon comes")
        ebb.start()
        ebb.wait_attached(VM, timeout=60, child=guest.child)
        squeeze(ebb, VM)
        guest.check(CHECK)
        expect_sound(ebb, VM)
        expect(guest.child.running(), "QEMU runs on")


sys.exit(main(run))
