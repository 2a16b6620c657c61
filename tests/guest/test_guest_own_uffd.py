#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A QEMU that uses a userfaultfd of its own on its RAM, for a background snapshot or for postcopy
migration: Ebb and it exclude each other, whoever came first, and the guest notices nothing."""
import sys

from ebbguest.ebb import Ebb
from ebbguest.guest import Guest, Ram
from ebbguest.process import Failure, Scope, wait_for
from ebbguest.testing import expect, expect_sound, main, squeeze, step

VM = "snapshot"
CHECK = "guest-mem check /dev/shm/keep 150 5"


def migration_status(guest):
    return guest.qmp.execute("query-migrate").get("status")


def start_snapshot(guest, slow=False):
    """slow: takes some seconds. QEMU limits no background snapshot's rate, so the reader does."""
    guest.qmp.execute("migrate-set-capabilities",
                      capabilities=[{"capability": "background-snapshot", "state": True}])
    wait = "for i in 1 2 3 4 5 6 7 8 9 10; do head -c 8000000 >/dev/null; sleep 0.6; done; "
    guest.qmp.execute("migrate", uri="exec:%scat >/dev/null" % (wait if slow else ""))


def wait_migration(guest):
    wait_for(lambda: migration_status(guest) in ("completed", "failed", "cancelled"),
             "the migration's end", 60, guest.child, 0.2)


def test_snapshot_first(ebb, guest):
    """The daemon comes while a snapshot is under way: it does not get the VM before its end."""
    step("a snapshot begins")
    start_snapshot(guest, slow=True)
    wait_for(lambda: migration_status(guest) == "active", "the snapshot", 10, guest.child)
    ebb.start()
    guest.check("guest-mem loop /dev/shm/keep 150 5 1")
    expect(migration_status(guest) == "active", "the snapshot goes on")
    expect(VM not in ebb.vms(), "the VM is not attached during the snapshot")
    expect(ebb.child.running(), "ebbd runs on")
    wait_migration(guest)
    expect(migration_status(guest) == "completed", "the snapshot came to its end")
    guest.check(CHECK)
    ebb.wait_attached(VM, timeout=60, child=guest.child)


def test_ebb_first(ebb, guest):
    """A snapshot is asked for while memory is evicted: it is refused, or all is brought back and
    the VM steps aside first. Either way no byte is lost."""
    step("a snapshot of a VM of which memory is evicted")
    squeeze(ebb, VM)
    try:
        start_snapshot(guest)
        wait_migration(guest)
    except Failure as e:
        print("refused by QEMU: %s" % e)
    print("snapshot of an evicted VM: %s" % migration_status(guest))
    guest.check(CHECK)
    expect(guest.child.running() and ebb.child.running(), "both run on")
    ebb.wait_attached(VM, timeout=60, child=guest.child)
    squeeze(ebb, VM)
    guest.check(CHECK)
    expect_sound(ebb, VM)


def test_postcopy(ebb, scope):
    """The VM arrives by postcopy migration: it is let be until all of it has arrived."""
    way = scope.path("way")
    source = Guest(scope, "source", Ram("512M"))
    source.wait_ready()
    source.check("guest-mem fill /dev/shm/keep 150 5")
    target = Guest(scope, VM, Ram("512M"), attach="preload", ebb=ebb,
                   devices=["-incoming", "unix:" + way])
    target.connect()
    for guest in source, target:
        guest.qmp.execute("migrate-set-capabilities",
                          capabilities=[{"capability": "postcopy-ram", "state": True}])
    source.qmp.execute("migrate-set-parameters", max_bandwidth=10 << 20,
                       max_postcopy_bandwidth=60 << 20)
    step("the VM arrives")
    source.qmp.execute("migrate", uri="unix:" + way)
    wait_for(lambda: migration_status(source) == "active", "the migration", 10, source.child)
    source.qmp.execute("migrate-start-postcopy")
    wait_for(lambda: migration_status(source) != "active", "postcopy", 10, source.child)
    target.check(CHECK) # fetches what has not arrived yet
    wait_migration(source)
    expect(migration_status(source) == "completed", "the migration came to its end")
    source.stop()
    ebb.wait_attached(VM, timeout=60, child=target.child)
    squeeze(ebb, VM)
    target.check(CHECK)
    expect_sound(ebb, VM)


def test_snapshots(ebb, scope):
    guest = Guest(scope, VM, Ram("512M"), attach="preload", ebb=ebb)
    guest.wait_ready()
    guest.check("guest-mem fill /dev/shm/keep 150 5")
    test_snapshot_first(ebb, guest)
    test_ebb_first(ebb, guest)


def run():
    kind, = sys.argv[1:]
    with Scope() as scope:
        ebb = Ebb(scope)
        if kind == "snapshot":
            test_snapshots(ebb, scope)
        else:
            ebb.start()
            test_postcopy(ebb, scope)


sys.exit(main(run))
