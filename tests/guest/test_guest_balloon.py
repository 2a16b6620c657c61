#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Memory that the guest gives up while other memory of it is being evicted: balloon and free page
reporting. What is given up is not kept in a backend, and does not come back with old content."""
import sys

from ebbguest.ebb import MIB, Ebb
from ebbguest.guest import Guest, Ram
from ebbguest.process import Scope, wait_for
from ebbguest.testing import expect, expect_sound, main, squeeze, step

VM = "balloon"
RAM = 768 * MIB


def held(ebb):
    """Guest RAM that Ebb holds in one way or the other."""
    figures = ebb.vm(VM)
    return figures["resident-bytes"] + figures["evicted-bytes"]


def test_balloon(ebb, guest):
    guest.check("guest-mem fill /dev/shm/gone 200 2 && rm /dev/shm/gone")
    squeeze(ebb, VM)
    before = held(ebb)
    step("the balloon is inflated")
    guest.balloon(RAM - 300 * MIB)
    wait_for(lambda: held(ebb) < before - 100 * MIB, "what the balloon took is not held", 30,
             guest.child, step=0.5)
    step("the balloon is deflated")
    guest.balloon(RAM)
    # Takes the memory that came back into use: old content in it would be found.
    guest.check("guest-mem fill /dev/shm/new 250 3")
    guest.check("guest-mem check /dev/shm/new 250 3")
    guest.check("guest-mem check /dev/shm/keep 150 1")


def test_reporting(ebb, guest):
    before = held(ebb)
    step("freed pages are reported")
    guest.check("rm /dev/shm/new")
    wait_for(lambda: held(ebb) < before - 150 * MIB, "what was reported free is not held", 60,
             guest.child, step=0.5)
    guest.check("guest-mem fill /dev/shm/new 250 4")
    guest.check("guest-mem check /dev/shm/new 250 4")


def run():
    attach, = sys.argv[1:]
    with Scope() as scope:
        ebb = Ebb(scope)
        ebb.start()
        guest = Guest(scope, VM, Ram("768M"), attach=attach, ebb=ebb, devices=[
            "-device", "virtio-balloon-pci,id=balloon,free-page-reporting=on"])
        guest.wait_ready()
        ebb.wait_attached(VM, child=guest.child)
        guest.check("guest-mem fill /dev/shm/keep 150 1")
        guest.start("loop", "guest-mem loop /dev/shm/keep 150 1 30")
        test_balloon(ebb, guest)
        test_reporting(ebb, guest)
        status, output = guest.finish("loop", timeout=90)
        expect(status == 0, "nothing was wrong meanwhile: " + output)
        guest.check("guest-mem check /dev/shm/keep 150 1")
        expect_sound(ebb, VM)


sys.exit(main(run))
