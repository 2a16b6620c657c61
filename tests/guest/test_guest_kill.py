#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The daemon is killed and replaced under a busy guest, again and again: each successor takes the VM
over with all that was evicted, keeps its limit, and the last one detaches it whole."""
import os
import sys

from ebbguest.ebb import MIB, Ebb
from ebbguest.guest import Guest, Ram
from ebbguest.process import Scope, wait_for
from ebbguest.redis import Load, Redis
from ebbguest.testing import expect, expect_sound, main, squeeze, step

VM = "kill"
DATA_MIB = 64
# More with cmake -DEBB_ROUNDS=20, which sets this: each is a kill and an upgrade.
ROUNDS = int(os.environ.get("EBB_ROUNDS", "2"))


def test_kill(ebb, guest, redis):
    """One death and one takeover, with requests under way throughout."""
    with Load(redis) as load:
        load.wait_answers(100, "answers under the limit")
        before = ebb.vm(VM)
        expect(before["evicted-bytes"] > 10 * MIB, "much is evicted when the daemon dies")
        step("ebbd %d is killed, with %d MiB evicted" % (ebb.pid, before["evicted-bytes"] // MIB))
        ebb.kill()
        ebb.start()
        ebb.wait_attached(VM, child=guest.child)
        step("ebbd %d has the VM" % ebb.pid)
        after = ebb.vm(VM)
        expect(after["evicted-bytes"] > before["evicted-bytes"] // 2,
               "what was evicted is, not %d MiB of it" % (after["evicted-bytes"] // MIB))
        # The name is there a moment before the settings that are kept for it.
        wait_for(lambda: ebb.vm(VM)["limit-bytes"] == before["limit-bytes"],
                 "the limit as before", 10)
        load.wait_answers(200, "answers after the takeover")
    expect(redis.wrong == 0, "every answer was right")
    expect(redis.verify() == 0, "every value is right after the takeover")
    figures = ebb.wait_resident(VM, before["limit-bytes"])
    expect_sound(ebb, VM)
    step("every value is right; %d MiB are resident" % (figures["resident-bytes"] // MIB))


def test_upgrade(ebb, guest, redis):
    """The living daemon hands over, with requests under way throughout."""
    with Load(redis) as load:
        load.wait_answers(100, "answers under the limit")
        before = ebb.vm(VM)
        done = ebb.upgrade()
        step("ebbd %d has the VM after %.1f ms, with %d MiB evicted" % (
            ebb.pid, done["paused-us"] / 1000, before["evicted-bytes"] // MIB))
        after = ebb.vm(VM)
        for key in ("pid", "limit-bytes", "ram-bytes", "reclaim-policy"):
            expect(after[key] == before[key], "%s is what it was" % key)
        expect(after["faults"] >= before["faults"], "faults go on counting")
        load.wait_answers(200, "answers after the upgrade")
    expect(redis.wrong == 0, "every answer was right")
    expect(redis.verify() == 0, "every value is right after the upgrade")
    ebb.wait_resident(VM, before["limit-bytes"])
    expect_sound(ebb, VM)


def test_detach(ebb, redis):
    step("detach")
    ebb.ctl("vm-detach", VM)
    ebb.wait_gone(VM)
    expect(redis.verify() == 0, "every value is right after the detach")
    redis.load(1)
    expect(redis.wrong == 0, "and stays so under load")


def run():
    with Scope() as scope:
        ebb = Ebb(scope)
        ebb.start()
        guest = Guest(scope, VM, Ram("384M"), attach="plugin", ebb=ebb)
        guest.wait_ready()
        ebb.wait_attached(VM, child=guest.child)
        redis = Redis(guest, DATA_MIB)
        redis.start()
        redis.fill()
        squeeze(ebb, VM)
        for _ in range(ROUNDS):
            test_kill(ebb, guest, redis)
            test_upgrade(ebb, guest, redis)
        test_detach(ebb, redis)
        expect(guest.child.running(), "QEMU runs on")


sys.exit(main(run))
