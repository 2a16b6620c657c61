#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""RAM that comes and goes while the VM is over its limit: a pc-dimm is plugged and unplugged, a
virtio-mem device grows and shrinks; what the guest keeps stays right throughout."""
import sys

from ebbguest.ebb import MIB, Ebb
from ebbguest.guest import Guest, Ram
from ebbguest.process import Scope, wait_for
from ebbguest.testing import expect, expect_sound, main, squeeze, step

VM = "hotplug"
MORE_ROOM = "mount -o remount,size=90% /dev/shm" # tmpfs' limit was taken when there was less RAM


def total_mib(guest):
    return int(guest.check("free -m | awk '/Mem/ { print $2 }'"))


def test_dimm(ebb, guest):
    step("a pc-dimm is plugged")
    before = total_mib(guest)
    guest.qmp.execute("object-add", qom_type="memory-backend-memfd", id="plugged",
                      size=256 * MIB, share=True)
    guest.qmp.execute("device_add", driver="pc-dimm", id="dimm", memdev="plugged")
    wait_for(lambda: ebb.vm(VM)["regions"] == 3, "the new RAM is managed", 60, guest.child, 0.2)
    wait_for(lambda: total_mib(guest) > before + 200, "the guest sees it", 60, guest.child, 0.2)
    guest.check(MORE_ROOM)
    guest.check("guest-mem fill /dev/shm/more 350 2") # more than there was before
    squeeze(ebb, VM)
    guest.check("guest-mem check /dev/shm/more 350 2")
    guest.check("rm /dev/shm/more")
    squeeze(ebb, VM, 0.7)
    step("the pc-dimm is unplugged")
    # The guest moves what is in it elsewhere, evicted or not, before it lets go.
    guest.qmp.execute("device_del", id="dimm")
    wait_for(lambda: guest.qmp.event("DEVICE_DELETED"), "the unplug", 60, guest.child, 0.2)
    guest.qmp.execute("object-del", id="plugged")
    wait_for(lambda: ebb.vm(VM)["regions"] == 2, "the unplugged RAM is let go", 60, guest.child,
             0.2)
    guest.check("guest-mem check /dev/shm/keep 150 1")


def test_virtio_mem(ebb, guest):
    before = total_mib(guest)
    for size, seed in ((128 * MIB, 3), (0, 0), (128 * MIB, 4)):
        step("virtio-mem becomes %d MiB" % (size // MIB))
        guest.qmp.execute("qom-set", path="/machine/peripheral/vmem", property="requested-size",
                          value=size)
        wait_for(lambda: guest.qmp.execute("qom-get", path="/machine/peripheral/vmem",
                                           property="size") == size,
                 "virtio-mem at %d MiB" % (size // MIB), 60, guest.child, 0.2)
        if size:
            wait_for(lambda: total_mib(guest) > before + 100, "the guest sees it", 60,
                     guest.child, 0.2)
            guest.check(MORE_ROOM)
            guest.check("guest-mem fill /dev/shm/more 250 %d" % seed)
            squeeze(ebb, VM, 0.6)
            guest.check("guest-mem check /dev/shm/more 250 %d && rm /dev/shm/more" % seed)
        guest.check("guest-mem check /dev/shm/keep 150 1")


def run():
    attach, = sys.argv[1:]
    with Scope() as scope:
        ebb = Ebb(scope)
        ebb.start()
        guest = Guest(scope, VM, Ram("512M", hotplug=",slots=4,maxmem=4G"), attach=attach, ebb=ebb,
                      devices=["-object", "memory-backend-memfd,id=vmem0,size=512M,share=on,"
                                          "reserve=off",
                               "-device", "virtio-mem-pci,id=vmem,memdev=vmem0,requested-size=0"])
        guest.wait_ready()
        ebb.wait_attached(VM, child=guest.child)
        wait_for(lambda: ebb.vm(VM)["regions"] == 2, "RAM and virtio-mem are managed", 30)
        guest.check("guest-mem fill /dev/shm/keep 150 1")
        squeeze(ebb, VM, 0.7)
        guest.start("loop", "guest-mem loop /dev/shm/keep 150 1 25")
        test_dimm(ebb, guest)
        test_virtio_mem(ebb, guest)
        status, output = guest.finish("loop", timeout=90)
        expect(status == 0, "nothing was wrong meanwhile: " + output)
        expect_sound(ebb, VM)


sys.exit(main(run))
